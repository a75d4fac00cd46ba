"""What a family hands to the exporter: graphs to trace, and everything the manifest needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlrt.manifest import (
    AnswerSpec,
    CodecSpec,
    DecodeSpec,
    DiffusionSpec,
    EmbedSpec,
    ImageSpec,
    ImageTokensSpec,
    MatchSpec,
    Measurement,
    Source,
    TextSpec,
)
from vlrt_export.external_data import MappedWeights


@dataclass(frozen=True)
class Graph:
    """One graph to trace: a module, inputs that show its shapes, and names.

    Args:
        role: the graph's name in the bundle and its file's stem, e.g. ``image_encoder``.
        module: an `nn.Module` in eval mode whose ``forward`` takes ``inputs`` in order and returns a tensor or a
            tuple of tensors in the order of ``outputs``.
        inputs: name -> sample tensor. Give every dynamic axis a size of at least 2.
        outputs: names of the outputs.
        dynamic: input name -> {axis: axis name}, e.g. ``{"pixels": {0: "batch"}}``. Equal names are equal sizes;
            ``8*height`` names an axis whose size is a multiple of 8.
        output_axes: output name -> {axis: axis name}, for the manifest and the graph's signature.
        cases: further inputs (other batch sizes and lengths) on which parity is measured beside ``inputs``.
        tolerance: largest absolute error against torch that the export admits.
        in_place: output name -> name of the input whose buffer it shares, as caches do in the loop.
        filled: input [R] with the last position that each row of an in-place output has filled, on axis 2; what
            lies beyond is not compared. Empty: all of it is.
        mapped: of a large graph that was written: its module's weights, in a file instead of memory.
    """

    role: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    output_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    cases: Sequence[Mapping[str, Tensor]] = ()
    tolerance: float = 1e-4
    in_place: Mapping[str, str] = field(default_factory=dict)
    filled: str = ""
    mapped: list[MappedWeights] = field(default_factory=list)

    def drop_weights(self) -> None:
        """Gives back what mapped weights take of memory until they are used again."""
        for weights in self.mapped:
            weights.drop()


Check = Callable[[Path], Iterable[Measurement]]
"""A family's own rung: gets the staged bundle's folder (manifest already in it), yields measurements."""


@dataclass(frozen=True)
class Plan:
    """Everything the exporter writes for one model.

    Args:
        name: the bundle's name, e.g. ``clip-vit-b-32``.
        family: the file name of the family in ``vlrt_export.families`` with dashes.
        tasks: the tasks the bundle serves (``caption``, ``answer``, ``match``, ``search``, ``embed``, ``classify``).
        graphs: in the order they should be written.
        source: where the weights come from, and under which licence.
        image, text, decode, embed, answer, match, instruction, codec, image_tokens, diffusion: the manifest's
            sections; ``None`` where there is none.
        files: further files of the bundle by plain name (``tokenizer.json``): bytes, or a path to copy.
        card: what the model knows and does not know, shown by ``vlrt inspect``.
        checks: the family's rungs beyond graph parity (pixels, ids, decode against the reference).
        extra: further top-level numbers a family needs (free form, JSON types only).
    """

    name: str
    family: str
    tasks: Sequence[str]
    graphs: Sequence[Graph]
    source: Source
    image: ImageSpec | None = None
    text: TextSpec | None = None
    decode: DecodeSpec | None = None
    embed: EmbedSpec | None = None
    answer: AnswerSpec | None = None
    match: MatchSpec | None = None
    instruction: TextSpec | None = None
    codec: CodecSpec | None = None
    image_tokens: ImageTokensSpec | None = None
    diffusion: DiffusionSpec | None = None
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    card: str = ""
    checks: Sequence[Check] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
