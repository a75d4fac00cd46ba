"""Folders that others exported: the ONNX layout of Hugging Face Optimum and of transformers.js, as a manifest.

Nothing in them says which bytes were exported, so their files are described as unverified; paths and links are refused
as in our own bundles. Layout: https://huggingface.co/docs/optimum-onnx/onnx/usage_guides/export_a_model
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlrt import manifest
from vlrt.errors import BundleError
from vlrt.generation_config import decode_options
from vlrt.manifest import (
    FILE_NAME,
    DecodeSpec,
    EmbedSpec,
    FileRecord,
    GraphSpec,
    Manifest,
    Source,
    StateSpec,
    TensorSpec,
    TextSpec,
    UnverifiedFile,
)
from vlrt.onnx_files import external_files
from vlrt.onnx_signature import signature
from vlrt.preprocessor_config import image_spec

CONFIG, GENERATION, PREPROCESSOR, TOKENIZER = (
    *("config.json", "generation_config.json", "preprocessor_config.json"),
    "tokenizer.json",
)
SUBFOLDER = "onnx"
"""Where transformers.js keeps the graphs."""

_VARIANTS = {"": "fp32", "_quantized": "int8", "_int8": "int8", "_uint8": "int8", "_q4": "int4", "_fp16": "fp16"}
"""Endings of a graph's name and the precision each means; where a folder has several, the first."""

_ENCODER, _MERGED, _FIRST, _LATER = "encoder_model", "decoder_model_merged", "decoder_model", "decoder_with_past_model"
_VISION, _TEXT = "vision_model", "text_model"
_PIXELS, _IDS, _STATES, _HIDDEN = "pixel_values", "input_ids", "encoder_hidden_states", "last_hidden_state"
_PAST, _PRESENT = "past_key_values.", "present."
_KIND = re.compile(r"[A-Za-z0-9][\w.-]{0,60}")
_LARGEST_JSON = 64 << 20
_CLIP_SCALE = 100.0
"""Bound that CLIP's training keeps its scale at, and where every published model ended; the graphs do not hold it."""

_SERVED = "served are vision-encoder-decoder models, and CLIP as vision_model.onnx and text_model.onnx"
_NOTE = "exported by others: nothing says what the files should hold, and no parity was measured"


def recognises(folder: Path) -> bool:
    """Whether a folder without a manifest looks like such an export."""
    try:
        places = (folder, folder / SUBFOLDER)
        return (folder / CONFIG).is_file() and any(any(place.glob("*.onnx")) for place in places)
    except (OSError, ValueError):  # a name that no file can have
        return False


def describe(folder: Path) -> tuple[Manifest, dict[str, Path]]:
    """A manifest for the folder, and where its files lie.

    Raises:
        BundleError: a kind of model that is not served, a missing or linked file, numbers that do not fit each other.
    """
    found = _Folder(folder.absolute())
    try:
        return _describe(found), found.places
    except (TypeError, KeyError, IndexError, AttributeError):
        what = f"the configuration of `{folder.name}` holds values of another kind than such models have"
        raise BundleError(what, "download the folder again") from None


def _describe(found: _Folder) -> Manifest:
    config = found.json(CONFIG)
    if found.graph(_ENCODER):
        return _captioner(found, config)
    if found.graph(_VISION) and found.graph(_TEXT):
        return _dual_encoder(found, config)
    kind = str(config.get("model_type", "unknown"))[:60]
    what = f"`{found.path.name}` is a `{kind}` model in graphs that this runtime does not serve"
    raise BundleError(what, _SERVED)


@dataclass
class _Folder:
    """Files of the folder by plain name, each a regular file."""

    path: Path
    places: dict[str, Path] = field(default_factory=dict)
    records: dict[str, FileRecord] = field(default_factory=dict)

    def json(self, name: str, *, required: bool = True) -> dict[str, Any]:
        """The object in a JSON file."""
        path = self.path / name
        if not required and not os.path.lexists(path):
            return {}
        if _regular_size(path) > _LARGEST_JSON:
            raise BundleError(f"`{name}` has more than {_LARGEST_JSON:,} bytes", "is it the right file?")
        try:
            value = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"`{name}` is not JSON: {error}", "download the folder again") from None
        if not isinstance(value, dict):
            raise BundleError(f"`{name}` holds a {type(value).__name__}, expected an object", "is it the right file?")
        return value

    def graph(self, stem: str) -> tuple[Path, str] | None:
        """A graph's file and its precision; `None` where the folder has none of that name."""
        for ending, precision in _VARIANTS.items():
            for place in (self.path, self.path / SUBFOLDER):
                path = place / f"{stem}{ending}.onnx"
                if os.path.lexists(path):
                    if place.is_symlink():
                        raise BundleError(f"`{place.name}` is a link", "copy the folder itself: cp -rL FROM TO")
                    return path, precision
        return None

    def spec(self, stem: str) -> GraphSpec:
        """The graph's signature; its file and what it reads beside it join the records."""
        found = self.graph(stem)
        if found is None:
            raise BundleError(f"`{self.path.name}` lacks `{stem}.onnx`", "export it again with its cache (-with-past)")
        path, precision = found
        self.add(path)
        external = tuple(sorted(external_files(path)))
        for name in external:
            if not FILE_NAME.fullmatch(name):
                raise BundleError(f"`{path.name}` would read `{name[:100]}`", "do not trust this folder")
            self.add(path.parent / name)
        inputs, outputs = signature(path)
        return GraphSpec(path.name, precision, inputs, outputs, external)

    def add(self, path: Path) -> str:
        """Records a file; returns its plain name."""
        self.records[path.name] = UnverifiedFile(_regular_size(path))
        self.places[path.name] = path
        return path.name

    def manifest(self, config: Mapping[str, Any], tasks: tuple[str, ...], **sections: Any) -> Manifest:
        source = Source(self.path.name, "unverified", "see the model's source", _NOTE)
        family = str(config.get("model_type", "unknown"))
        if not _KIND.fullmatch(family):
            raise BundleError(f"`model_type` of {CONFIG} is {family[:60]!r}, expected a name", "is it the right file?")
        return Manifest(manifest.SCHEMA, self.path.name, family, tasks, source, self.records, **sections)


def _regular_size(path: Path) -> int:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        raise BundleError(f"`{path.parent.name}` lacks `{path.name}`", "download or export the folder again") from None
    except OSError as error:
        raise BundleError(f"`{path.name}` cannot be read: {error.strerror}", "check its permissions") from None
    if not stat.S_ISREG(found.st_mode):
        hint = "links are not followed; copy the folder itself: cp -rL FROM TO"
        raise BundleError(f"`{path.name}` is not a regular file", hint)
    return found.st_size


def _captioner(found: _Folder, config: Mapping[str, Any]) -> Manifest:
    """An image encoder and a decoder with cross-attention."""
    encoder, merged = found.spec(_ENCODER), found.graph(_MERGED) is not None
    if [tensor.name for tensor in encoder.inputs] != [_PIXELS]:
        names = ", ".join(f"`{tensor.name}`" for tensor in encoder.inputs)
        raise BundleError(f"`{encoder.file}` takes {names}, expected `{_PIXELS}` alone", _SERVED)
    step = found.spec(_MERGED if merged else _LATER)
    graphs = {"image_encoder": encoder, "decoder_step": step}
    if not merged:
        graphs["decoder_prefill"] = found.spec(_FIRST)
    pixels = image_spec(found.json(PREPROCESSOR), _PIXELS)
    decode = _decode_spec(found, config, step, graphs.get("decoder_prefill"))
    graphs["decoder_step"] = _with_vocabulary(step, decode.vocabulary)
    text = TextSpec(found.add(found.path / TOKENIZER), decode.max_length, decode.vocabulary, decode.pad_id)
    return found.manifest(config, ("caption",), graphs=graphs, image=pixels, text=text, decode=decode)


def _decode_spec(found: _Folder, config: Mapping[str, Any], step: GraphSpec, first: GraphSpec | None) -> DecodeSpec:
    decoder = config.get("decoder")
    decoder = decoder if isinstance(decoder, dict) else dict(config)
    generation = found.json(GENERATION, required=False) or {**_without_empty(decoder), **_without_empty(config)}
    sources = (generation, config, decoder)
    start = _ids(sources, "decoder_start_token_id") or _ids(sources, "bos_token_id")
    ends = _ids(sources, "eos_token_id")
    if not start or not ends:
        raise BundleError(f"`{found.path.name}` names no start or end id", "correct generation_config.json")
    length = _positions(decoder)
    options = decode_options(generation, len(start[:1]))
    options["max_new_tokens"] = min(options["max_new_tokens"], length - 1)
    return DecodeSpec(
        chain=("image_encoder",),
        step="decoder_step",
        vocabulary=_vocabulary(step, decoder),
        start_ids=start[:1],
        end_ids=ends,
        pad_id=(_ids(sources, "pad_token_id") or ends)[0],
        states=tuple(_states(step, first or step)),
        max_length=length,
        defaults=options,
        token=_IDS,
        logits="logits",
        prefill="decoder_prefill" if first else "",
    )


def _states(step: GraphSpec, first: GraphSpec) -> list[StateSpec]:
    """Caches that grow, and what the first call computes of the image once."""
    states = [StateSpec("memory", _STATES, initial=_HIDDEN)]
    for tensor in step.inputs:
        if tensor.name.startswith(_PAST):
            kind, output = tensor.name.removeprefix(_PAST), _PRESENT + tensor.name.removeprefix(_PAST)
            states.append(StateSpec("memory" if ".encoder." in kind else "kv_concat", tensor.name, output))
    if len(states) == 1:
        raise BundleError(f"`{step.file}` takes no earlier keys and values", "export it again with its cache")
    first.input(_STATES)
    return states


def _vocabulary(step: GraphSpec, decoder: Mapping[str, Any]) -> int:
    axis = step.output("logits").shape[-1]
    size = axis if isinstance(axis, int) else decoder.get("vocab_size")
    if not isinstance(size, int):
        raise BundleError(f"neither `{step.file}` nor config.json says how large the vocabulary is", "export it again")
    return size


def _with_vocabulary(graph: GraphSpec, size: int) -> GraphSpec:
    """The signature with the last axis of the logits named by its size."""

    def sized(tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, shape=(*tensor.shape[:-1], size)) if tensor.name == "logits" else tensor

    return replace(graph, outputs=tuple(map(sized, graph.outputs)))


def _positions(decoder: Mapping[str, Any]) -> int:
    """Most tokens of a sequence; RoBERTa and its kin count theirs from after the padding id."""
    for name in ("n_positions", "max_position_embeddings", "max_target_positions"):
        found = decoder.get(name)
        if isinstance(found, int):
            shifted = "roberta" in str(decoder.get("model_type")) or decoder.get("model_type") == "camembert"
            return found - decoder.get("pad_token_id", 1) - 1 if shifted else found
    raise BundleError("config.json does not say how many positions the decoder has", "add `max_position_embeddings`")


def _ids(sources: tuple[Mapping[str, Any], ...], name: str) -> tuple[int, ...]:
    """Ids of that name in the first configuration that has them."""
    for source in sources:
        value = source.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in values):
            raise BundleError(f"`{name}` is {str(value)[:60]!r}, expected ids", "correct generation_config.json")
        if values:
            return tuple(values)
    return ()


def _without_empty(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


def _dual_encoder(found: _Folder, config: Mapping[str, Any]) -> Manifest:
    """CLIP's two towers with their projections, as transformers.js splits them."""
    if config.get("model_type") != "clip":
        raise BundleError(f"`{found.path.name}` is a `{config.get('model_type')}` model, expected `clip`", _SERVED)
    graphs = {"image_encoder": found.spec(_VISION), "text_encoder": found.spec(_TEXT)}
    for graph, name in zip(graphs.values(), (_PIXELS, _IDS)):
        if [tensor.name for tensor in graph.inputs] != [name]:
            names = ", ".join(f"`{tensor.name}`" for tensor in graph.inputs)
            raise BundleError(f"`{graph.file}` takes {names}, expected `{name}` alone", _SERVED)
    dimension = graphs["image_encoder"].output("image_embeds").shape[-1]
    if not isinstance(dimension, int):
        dimension = config.get("projection_dim", 512)
    graphs = {role: _with_dimension(graph, dimension) for role, graph in graphs.items()}
    embed = EmbedSpec(
        ("image_encoder",),
        ("text_encoder",),
        dimension,
        _CLIP_SCALE,
        image_output="image_embeds",
        text_output="text_embeds",
        templates=("a photo of a {}.",),
        normalised=False,
    )
    pixels, text = image_spec(found.json(PREPROCESSOR), _PIXELS), _clip_text(found, config)
    tasks = ("embed", "classify", "match", "search")
    return found.manifest(config, tasks, graphs=graphs, image=pixels, text=text, embed=embed)


def _with_dimension(graph: GraphSpec, dimension: int) -> GraphSpec:
    outputs = (
        replace(t, shape=(*t.shape[:-1], dimension)) if t.name in ("image_embeds", "text_embeds") else t
        for t in graph.outputs
    )
    return replace(graph, outputs=tuple(outputs))


def _clip_text(found: _Folder, config: Mapping[str, Any]) -> TextSpec:
    """Start and end by their names in the tokenizer: configurations of CLIP are known to hold other ids."""
    section = config.get("text_config")
    section = section if isinstance(section, dict) else {}
    tokens = {str(t.get("content")): t.get("id") for t in found.json(TOKENIZER).get("added_tokens", [])}
    start, end = tokens.get("<|startoftext|>"), tokens.get("<|endoftext|>")
    if not isinstance(start, int) or not isinstance(end, int):
        raise BundleError("tokenizer.json has no start or end of CLIP's texts", "is it the model's own?")
    return TextSpec(
        found.add(found.path / TOKENIZER),
        context=section.get("max_position_embeddings", 77),
        vocabulary=section.get("vocab_size", 49408),
        pad_id=end,
        start_id=start,
        end_id=end,
        input=_IDS,
    )
