"""The schema of `manifest.json`: every number a bundle's runtime needs, as frozen dataclasses with all validation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vlrt import record
from vlrt.diffusion_sections import DiffusionSpec
from vlrt.sections import (
    DTYPES,
    FILE_NAME,
    AnswerSpec,
    DecodeSpec,
    EmbedSpec,
    FileRecord,
    GraphSpec,
    ImageSpec,
    MatchSpec,
    Measurement,
    RecordSpec,
    Source,
    StateSpec,
    TensorSpec,
    TextSpec,
    UnverifiedFile,
    refuse,
)
from vlrt.token_sections import CodecSpec, ImageTokensSpec

__all__ = [
    "DTYPES",
    "FILE_NAME",
    "SCHEMA",
    "AnswerSpec",
    "CodecSpec",
    "DecodeSpec",
    "DiffusionSpec",
    "EmbedSpec",
    "FileRecord",
    "GraphSpec",
    "ImageSpec",
    "ImageTokensSpec",
    "Manifest",
    "MatchSpec",
    "Measurement",
    "RecordSpec",
    "Source",
    "StateSpec",
    "TensorSpec",
    "TextSpec",
    "UnverifiedFile",
    "dump",
    "parse",
    "refuse",
]

SCHEMA = 1
"""Version of the manifest's layout that this runtime reads and writes."""


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime needs to know of a bundle; see the fields' types.

    `instruction` is how a text encoder of the decode section's chain reads the question that `text` reads too.
    """

    schema: int
    name: str
    family: str
    tasks: tuple[str, ...]
    source: Source
    files: dict[str, FileRecord]
    graphs: dict[str, GraphSpec]
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
    certificate: tuple[Measurement, ...] = ()
    goldens: str = ""
    created_by: dict[str, str] = field(default_factory=dict)
    card: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.files:
            if not FILE_NAME.fullmatch(name) or name == "manifest.json":
                raise refuse(f"`{name}` is not a plain file name inside the bundle", "do not trust this bundle")
        for role, graph in self.graphs.items():
            for name in (graph.file, *graph.external):
                self._need_file(name, f"graph `{role}`")
        if self.goldens:
            self._need_file(self.goldens, "the manifest")
        if self.text:
            self._need_file(self.text.tokenizer, "the text section")
        if self.instruction:
            self._need_file(self.instruction.tokenizer, "the instruction section")
        self._check_decode()
        self._check_embed()
        self._check_answer()
        self._check_match()
        self._check_codec()
        self._check_diffusion()

    def _need_file(self, name: str, who: str) -> None:
        if name not in self.files:
            raise refuse(f"{who} names `{name}`, which is not among the bundle's files")

    def _need_roles(self, roles: Iterable[str], who: str) -> None:
        for role in roles:
            if role not in self.graphs:
                raise refuse(f"the {who} section names the graph `{role}`, which the bundle lacks")

    def _check_decode(self) -> None:
        spec = self.decode
        if spec is None:
            return
        self._need_roles(spec.roles, "decode")
        step = self.graphs[spec.step]
        first = self.graphs[spec.prefill or spec.step]
        step.input(spec.token)
        _check_last_axis(step.output(spec.logits), spec.vocabulary, "a vocabulary of")
        known = {self.image.input} if self.image else set()
        if self.answer and self.answer.question == "encoder" and self.text:
            known.add(self.text.input)
        if self.answer and self.instruction:
            known.add(self.instruction.input)
        if self.image_tokens and self.image_tokens.text == "encoder" and self.text:
            known.add(self.text.input)
        produced = self._check_chain(spec.chain, known)
        for state in spec.states:
            given_once = state.kind == "memory" and not any(t.name == state.input for t in step.inputs)
            (first if given_once else step).input(state.input)
            if state.kind in ("recurrent", "kv", "kv_concat", "shift"):
                step.output(state.output)
            if state.kind == "memory" and state.output:
                first.output(state.output)
            elif state.kind in ("recurrent", "memory") and state.source not in produced:
                raise refuse(f"state `{state.input}` starts from `{state.source}`, which no graph of the chain gives")
        for kept in spec.records:
            found = step.output(kept.output)
            if kept.grid is not None:
                _check_last_axis(found, kept.grid[0] * kept.grid[1], f"a grid of {list(kept.grid)}, together")

    def _check_embed(self) -> None:
        spec = self.embed
        if spec is None:
            return
        self._need_roles((*spec.image, *spec.text), "embed")
        pixels = {self.image.input} if self.image else set()
        texts = {self.text.input, *spec.learned_context, *filter(None, (spec.mask,))} if self.text else set()
        for roles, output, inputs in ((spec.image, spec.image_output, pixels), (spec.text, spec.text_output, texts)):
            self._check_chain(roles, pixels | texts if spec.joint else inputs)
            _check_last_axis(self.graphs[roles[-1]].output(output), spec.dimension, "the dimension")

    def _check_answer(self) -> None:
        if self.answer and not (self.decode and self.text and self.image):
            raise refuse("an answer section needs image, text and decode sections beside it")

    def _check_match(self) -> None:
        spec = self.match
        if spec is None:
            return
        if not (self.text and self.image):
            raise refuse("a match section needs image and text sections beside it")
        self._need_roles((*spec.image, spec.graph), "match")
        produced = self._check_chain(spec.image, {self.image.input})
        self._check_chain((spec.graph,), produced | {self.text.input})
        found = self.graphs[spec.graph].output(spec.output)
        if len(found.shape) != 1:
            raise refuse(f"`{spec.output}` has shape {list(found.shape)}, expected one number a sentence")

    def _check_codec(self) -> None:
        codec, drawn = self.codec, self.image_tokens
        if codec is not None:
            self._need_roles(codec.roles, "codec")
            for role, name in ((codec.tokenizer, codec.pixels), (codec.detokenizer, codec.tokens)):
                if role:
                    self._check_chain((role,), {name})
        if drawn is None:
            return
        if codec is None or not codec.detokenizer or self.decode is None:
            raise refuse("an image tokens section needs a decode section and a codec with a detokenizer beside it")
        if codec.codebook != drawn.codebook:
            raise refuse(f"the decoder writes {drawn.codebook} codes, the codec has {codec.codebook}")
        spec = self.decode
        if spec.vocabulary < drawn.first_id + drawn.codebook:
            raise refuse(f"the decoder has {spec.vocabulary} ids, not {drawn.codebook} codes from {drawn.first_id} on")
        rows, columns = drawn.grid
        if spec.max_length < len(spec.start_ids) + rows * columns:
            what = f"the decoder has room for {spec.max_length} positions, not for {rows} x {columns} codes"
            raise refuse(f"{what} behind {len(spec.start_ids)} others")
        for pattern in spec.patterns:
            if pattern.grid != drawn.grid:
                raise refuse(f"the pattern `{pattern.name}` is of a grid {list(pattern.grid)}, not {list(drawn.grid)}")
        if codec.fixed and codec.grid != drawn.grid:
            raise refuse(f"the decoder writes a grid of {list(drawn.grid)}, the codec takes {list(codec.grid or ())}")

    def _check_diffusion(self) -> None:
        spec = self.diffusion
        if spec is None:
            return
        self._need_roles(spec.roles, "diffusion")
        for prompt in spec.prompts:
            self._need_file(prompt.text.tokenizer, "the diffusion section")
        for stage in spec.stages:
            denoiser = self.graphs[stage.denoiser]
            given = denoiser.input(stage.sample_input).shape
            fits = all(isinstance(axis, str) or axis == size for axis, size in zip(given[1:], stage.shape))
            if len(given) != len(stage.shape) + 1 or not fits:
                what = f"`{denoiser.file}` takes samples {list(given)}"
                raise refuse(f"{what}, the stage `{stage.name}` has {list(stage.shape)}")
            denoiser.input(stage.timestep_input)
            denoiser.output(stage.prediction_output)

    def _check_chain(self, roles: Iterable[str], known: set[str]) -> set[str]:
        """Names that a chain produces; every input must be known before or come from an earlier graph."""
        produced: set[str] = set()
        for role in roles:
            for tensor in self.graphs[role].inputs:
                if tensor.name not in known | produced:
                    raise refuse(f"input `{tensor.name}` of the graph `{role}` comes from nowhere")
            produced |= {tensor.name for tensor in self.graphs[role].outputs}
        return produced


def _check_last_axis(tensor: TensorSpec, size: int, what: str) -> None:
    if not tensor.shape or tensor.shape[-1] != size:
        raise refuse(f"`{tensor.name}` has shape {list(tensor.shape)}, expected {what} {size} as its last axis")


def parse(text: str | bytes, where: str = "manifest") -> Manifest:
    """Reads a manifest from JSON text.

    Raises:
        BundleError: not JSON, another schema version, or anything that the dataclasses above refuse.
    """
    try:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(plain, object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise refuse(f"`{where}` is not JSON: {error}") from None
    schema = value.get("schema") if isinstance(value, dict) else None
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        schema = schema if isinstance(schema, (int, str, type(None))) and len(str(schema)) < 20 else "something else"
        hint = "install a newer vlrt" if newer else "export the bundle again with this vlrt"
        raise refuse(f"`{where}` has schema version {schema!r}, this vlrt reads version {SCHEMA}", hint)
    return record.read(Manifest, value, where)


def dump(manifest: Manifest) -> str:
    """The manifest as JSON text with a final newline; `parse(dump(m)) == m`."""
    return json.dumps(record.write(manifest), indent=1, ensure_ascii=False, sort_keys=False) + "\n"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two equal keys they take, so a file with such means different things to them."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("one key stands twice in an object")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")
