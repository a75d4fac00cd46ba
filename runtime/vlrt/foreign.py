"""Folders that others exported: the ONNX layout of Hugging Face Optimum and of transformers.js, as a manifest.

Nothing in them says which bytes were exported, so their files are described as unverified; paths and links are refused
as in our own bundles. Layout: https://huggingface.co/docs/optimum-onnx/onnx/usage_guides/export_a_model
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlrt.errors import BundleError
from vlrt.foreign_clip import describe_dual_encoder, holds_dual_encoder
from vlrt.foreign_folder import CONFIG, IDS, PIXELS, PREPROCESSOR, SERVED, SUBFOLDER, TOKENIZER, ForeignFolder
from vlrt.generation_config import decode_options
from vlrt.manifest import DecodeSpec, GraphSpec, Manifest, StateSpec, TensorSpec, TextSpec
from vlrt.preprocessor_config import image_spec

GENERATION = "generation_config.json"
_ENCODER, _MERGED, _FIRST, _LATER = "encoder_model", "decoder_model_merged", "decoder_model", "decoder_with_past_model"
_STATES, _HIDDEN = "encoder_hidden_states", "last_hidden_state"
_PAST, _PRESENT = "past_key_values.", "present."


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
    found = ForeignFolder(folder.absolute())
    try:
        return _describe(found), found.places
    except (TypeError, KeyError, IndexError, AttributeError):
        what = f"the configuration of `{folder.name}` holds values of another kind than such models have"
        raise BundleError(what, "download the folder again") from None


def _describe(found: ForeignFolder) -> Manifest:
    config = found.json(CONFIG)
    if found.graph(_ENCODER):
        return _captioner(found, config)
    if holds_dual_encoder(found, config):
        return describe_dual_encoder(found, config)
    kind = str(config.get("model_type", "unknown"))[:60]
    what = f"`{found.path.name}` is a `{kind}` model in graphs that this runtime does not serve"
    raise BundleError(what, SERVED)


def _captioner(found: ForeignFolder, config: Mapping[str, Any]) -> Manifest:
    """An image encoder and a decoder with cross-attention."""
    encoder, merged = found.spec(_ENCODER), found.graph(_MERGED) is not None
    if [tensor.name for tensor in encoder.inputs] != [PIXELS]:
        names = ", ".join(f"`{tensor.name}`" for tensor in encoder.inputs)
        raise BundleError(f"`{encoder.file}` takes {names}, expected `{PIXELS}` alone", SERVED)
    step = found.spec(_MERGED if merged else _LATER)
    graphs = {"image_encoder": encoder, "decoder_step": step}
    if not merged:
        graphs["decoder_prefill"] = found.spec(_FIRST)
    pixels = image_spec(found.json(PREPROCESSOR), PIXELS)
    decode = _decode_spec(found, config, step, graphs.get("decoder_prefill"))
    graphs["decoder_step"] = _with_vocabulary(step, decode.vocabulary)
    text = TextSpec(found.add(found.path / TOKENIZER), decode.max_length, decode.vocabulary, decode.pad_id)
    return found.manifest(config, ("caption",), graphs=graphs, image=pixels, text=text, decode=decode)


def _decode_spec(
    found: ForeignFolder, config: Mapping[str, Any], step: GraphSpec, first: GraphSpec | None
) -> DecodeSpec:
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
        token=IDS,
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
