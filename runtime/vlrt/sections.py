"""The sections of a manifest, each a frozen dataclass that refuses what cannot be meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from vlrt.attention_patterns import PatternSpec
from vlrt.errors import BundleError

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
DTYPES = ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")
_LARGEST_AXIS = 2**31 - 1
_LARGEST_ROW = 2**31
"""Elements that the fixed axes of one tensor may multiply to; beyond it a shape is an attack or a mistake."""


def refuse(what: str, hint: str = "export the bundle again") -> BundleError:
    return BundleError(what, hint)


@dataclass(frozen=True)
class Source:
    """Where the weights come from.

    Args:
        origin: hub id, address or a name of the checkpoint; never a machine's path.
        revision: commit of the hub, or ``sha256:…`` of the weight file.
        license: SPDX identifier or a short phrase.
        note: anything a user must know, e.g. that the weights are random.
    """

    origin: str
    revision: str
    license: str
    note: str = ""


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.bytes < 0 or not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise refuse("a file record needs a size and 64 hexadecimal digits of sha256")


@dataclass(frozen=True)
class UnverifiedFile(FileRecord):
    """A file that others exported: its size as found, and nothing to hold its content against.

    Only a description made on the fly has such; a manifest that is read from a file cannot.
    """

    sha256: str = "unverified"

    def __post_init__(self) -> None:
        if self.bytes < 0 or self.sha256 != "unverified":
            raise refuse("an unverified file has a size and no sha256")


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output; an axis is a size or a name (equal names, equal sizes)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise refuse(f"tensor `{self.name}` has dtype `{self.dtype}`, expected one of {', '.join(DTYPES)}")
        elements = 1
        for axis in self.shape:
            if axis == "":
                raise refuse(f"tensor `{self.name}` has an axis without size or name: {list(self.shape)}")
            if isinstance(axis, int):
                elements *= axis
                if not 0 < axis <= _LARGEST_AXIS or elements > _LARGEST_ROW:
                    raise refuse(f"tensor `{self.name}` has the absurd shape {list(self.shape)}")


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its file, the precision of its arithmetic, the external data it reads, its signature.

    `storage` is the precision of the matrices on disk where it differs from that of the arithmetic.
    """

    file: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    external: tuple[str, ...] = ()
    storage: str = ""

    def __post_init__(self) -> None:
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            if len({spec.name for spec in specs}) < len(specs):
                raise refuse(f"`{self.file}` has two {kind}s of one name")

    def input(self, name: str) -> TensorSpec:
        return _named(self.inputs, name, f"input of `{self.file}`")

    def output(self, name: str) -> TensorSpec:
        return _named(self.outputs, name, f"output of `{self.file}`")


def _named(specs: Iterable[TensorSpec], name: str, what: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise refuse(f"`{name}` is not an {what}")


@dataclass(frozen=True)
class ImageSpec:
    """How a photograph becomes pixels: resize, centre crop, ``(value · scale − mean) / std`` on 0–255, [N, 3, H, W].

    Args:
        size: height and width of the result in pixels.
        resize: ``stretch`` to `size`, or ``shortest_edge`` to `shortest_edge` pixels and then a centre crop to `size`.
        shortest_edge: pixels; only for that resize.
        stretched: height and width that ``stretch`` gives before a centre crop to `size`; `size` itself where `None`.
        interpolation: Pillow's filter of that name.
        crop_rounding: of the crop's corner where the margin is odd: ``floor`` as transformers, ``half_even`` as
            torchvision.
        scale, mean, std: see the formula; mean and std per RGB channel.
        input: name of the graph input that takes the pixels.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1.0
    resize: Literal["stretch", "shortest_edge"] = "stretch"
    shortest_edge: int = 0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    crop_rounding: Literal["floor", "half_even"] = "floor"
    stretched: tuple[int, int] | None = None
    input: str = "pixels"

    def __post_init__(self) -> None:
        if not all(0 < side <= 8192 for side in self.size) or not 0 <= self.shortest_edge <= 8192:
            raise refuse(f"image size {list(self.size)} is outside 1 to 8192 pixels")
        if self.resize == "shortest_edge" and self.shortest_edge < max(self.size):
            raise refuse(f"shortest edge {self.shortest_edge} is smaller than the crop {list(self.size)}")
        if self.stretched is not None:
            fits = all(size <= side <= 8192 for size, side in zip(self.size, self.stretched))
            if self.resize != "stretch" or not fits:
                what = f"an image stretched to {list(self.stretched)} does not hold the crop {list(self.size)}"
                raise refuse(what)
        if not all(self.std) or not self.scale:
            raise refuse("image scale and std must not be zero")


@dataclass(frozen=True)
class TextSpec:
    """How a sentence becomes ids: the tokenizer's file, special ids, longest length in ids (start and end included)."""

    tokenizer: str
    context: int
    vocabulary: int
    pad_id: int
    start_id: int | None = None
    end_id: int | None = None
    pad_to_context: bool = False
    input: str = "input_ids"

    def __post_init__(self) -> None:
        ids = [i for i in (self.pad_id, self.start_id, self.end_id) if i is not None]
        if not 0 < self.context <= 1 << 20 or not all(0 <= i < self.vocabulary for i in ids):
            raise refuse(f"text section: special ids {ids} must lie in a vocabulary of {self.vocabulary}")
        if self.context < len(ids):  # as many special ids as there may be, less the padding, and one word
            raise refuse(f"text section: a context of {self.context} ids leaves no room for words")


@dataclass(frozen=True)
class StateSpec:
    """One tensor that lives between decoder steps.

    Args:
        kind: ``recurrent`` (read from `input`, written to `output`), ``kv`` (in-place cache of fixed length),
            ``kv_concat`` (grows by concatenation, in graphs that others exported), ``memory`` (from the image, one row
            per image, never per beam), ``noise`` (uniforms in [0, 1), drawn for every row before each step), ``shift``
            (of which a cell reads one half from the cell above and the other from the left).
        input: name of the step graph's input.
        output: name of the step graph's output that replaces it; empty for noise. Memory has one only where, beside
            ``kv_concat``, the decoder's first call computes it from the chain's.
        initial: name of the image chain's output it starts from; `input` where empty.
        pattern: of a ``kv`` cache that holds only what a sparse attention sees, its pattern's name; of a ``shift`` that
            of a pattern over its grid.
    """

    kind: Literal["recurrent", "kv", "kv_concat", "memory", "noise", "shift"]
    input: str
    output: str = ""
    initial: str = ""
    pattern: str = ""

    @property
    def source(self) -> str:
        return self.initial or self.input


@dataclass(frozen=True)
class RecordSpec:
    """A step output kept for every word; `grid` gives rows and columns where it is a map over the image."""

    output: str
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class DecodeSpec:
    """An autoregressive decoder: where its state comes from, its step graph, its ids and its default options.

    Args:
        chain: roles run once per image; outputs feed equally named inputs of the next; the last give the states.
        step: role of the step graph.
        prefill: role of the graph for the first call where it is another one; only beside ``kv_concat``.
        defaults: values for `vlrt.decode.DecodeOptions` by field name.
        max_length: most tokens a sequence may have, prompt included.
        end_is_text: whether the end id belongs to the sentence, as a full stop does.
        patterns: of sparse attentions; the step graph takes ``last_position.<name>`` and ``total_length.<name>`` of
            their caches.
    """

    chain: tuple[str, ...]
    step: str
    vocabulary: int
    start_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    pad_id: int
    states: tuple[StateSpec, ...]
    max_length: int
    records: tuple[RecordSpec, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    token: str = "token"
    logits: str = "logits"
    prefill: str = ""
    end_is_text: bool = False
    patterns: tuple[PatternSpec, ...] = ()

    def __post_init__(self) -> None:
        ids = (*self.start_ids, *self.end_ids, self.pad_id)
        if not 0 < self.vocabulary <= 1 << 24 or not all(0 <= i < self.vocabulary for i in ids):
            raise refuse(f"decode section: ids {list(ids)} must lie in a vocabulary of {self.vocabulary}")
        if not self.chain or not self.start_ids or not 0 < self.max_length <= 1 << 20:
            raise refuse("decode section: needs a chain, a start id and a sensible max_length")
        inputs = [self.token, *(state.input for state in self.states)]
        if len(set(inputs)) < len(inputs):
            raise refuse("decode section: one input of the step graph is named twice")
        if not self.concatenates and (self.prefill or any(s.kind == "memory" and s.output for s in self.states)):
            raise refuse("decode section: only a decoder whose caches grow may have a first call of its own")
        self._check_patterns()

    def _check_patterns(self) -> None:
        named = {pattern.name: pattern for pattern in self.patterns}
        if len(named) < len(self.patterns) or len({pattern.text for pattern in self.patterns}) > 1:
            raise refuse("decode section: patterns need names of their own and one length of text")
        for state in self.states:
            if (state.pattern or state.kind == "shift") and state.pattern not in named:
                raise refuse(f"state `{state.input}` names the pattern `{state.pattern}`, which is not there for it")

    @property
    def concatenates(self) -> bool:
        """Whether the caches grow by concatenation, as in graphs that others exported."""
        return any(state.kind == "kv_concat" for state in self.states)

    @property
    def roles(self) -> tuple[str, ...]:
        """Every graph that decoding needs."""
        return (*self.chain, self.step, *filter(None, (self.prefill,)))


@dataclass(frozen=True)
class EmbedSpec:
    """A dual encoder: chains of roles into one space, L2-normalised; similarity is ``scale`` · cosine.

    An image may have several embeddings [N, Q, D], as BLIP-2's queries give it; the best one's cosine counts.

    Args:
        image, text: roles run in order for an image and for a sentence.
        dimension: length of an embedding.
        scale: exp(logit scale), the temperature's inverse.
        templates: prompt templates a label is put into, ``{}`` stands for it.
        learned_context: inputs of the text graph for learned prompts (vectors, index), empty where it has none.
        token_width: length of a token's embedding, needed for learned prompts; 0 where there are none.
        normalised: whether the graphs give vectors of length one; those that others exported do not.
        joint: whether one graph gives both embeddings and wants both inputs, as Optimum exports CLIP; in place of what
            is not asked for it gets a blank picture, or a text without words.
        mask: input of the text graph that takes 1 for every id; empty where there is none.
    """

    image: tuple[str, ...]
    text: tuple[str, ...]
    dimension: int
    scale: float
    image_output: str = "image_embedding"
    text_output: str = "text_embedding"
    templates: tuple[str, ...] = ("{}",)
    learned_context: tuple[str, ...] = ()
    token_width: int = 0
    normalised: bool = True
    joint: bool = False
    mask: str = ""

    def __post_init__(self) -> None:
        if not self.image or not self.text or not 0 < self.dimension <= 1 << 20 or not self.scale > 0:
            raise refuse("embed section: needs image and text graphs, a sensible dimension and a positive scale")
        if len(self.learned_context) not in (0, 2) or not 0 <= self.token_width <= 1 << 20:
            raise refuse("embed section: learned prompts need two inputs (vectors, index) and the width of a token")


@dataclass(frozen=True)
class AnswerSpec:
    """How a question about an image, or the prompt of a caption, reaches the decoder of the decode section.

    Args:
        question: ``encoder``: its ids, start and end included, are an input of the decode section's chain, named as the
            text section says; ``prompt``: it is the beginning of what the decoder continues. An instruction section
            beside names a further input of the chain that takes the same question.
        template: what is written around a question; ``{}`` stands for it.
    """

    question: Literal["encoder", "prompt"] = "prompt"
    template: str = "{}"

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1:
            raise refuse(f"answer section: the template `{self.template[:60]}` needs `{{}}` once, for the question")


@dataclass(frozen=True)
class MatchSpec:
    """A graph that reads an image and a sentence together and says whether they belong together.

    Args:
        image: roles run once per image.
        graph: role of the graph; its inputs are outputs of those and, named as the text section says, sentences
            [N·k, L] padded at the end, an image's k sentences neighbours.
        output: its output [N·k], a probability.
    """

    image: tuple[str, ...]
    graph: str
    output: str = "match_probability"

    def __post_init__(self) -> None:
        if not self.image:
            raise refuse("match section: needs the graphs that encode an image")


@dataclass(frozen=True)
class Measurement:
    """One line of the parity certificate: `value` of `metric` at `stage`, admitted because it is within `limit`."""

    stage: str
    metric: str
    value: float
    limit: float
    reference: str
    reference_version: str
    note: str = ""
    better: Literal["lower", "higher"] = "lower"

    @property
    def passed(self) -> bool:
        return self.value <= self.limit if self.better == "lower" else self.value >= self.limit
