"""CLIP and SigLIP as others export them: two towers (transformers.js), or the one graph that Optimum makes of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlrt.errors import BundleError
from vlrt.foreign_folder import IDS, PIXELS, PREPROCESSOR, SERVED, TOKENIZER, ForeignFolder
from vlrt.manifest import EmbedSpec, GraphSpec, Manifest, TextSpec
from vlrt.preprocessor_config import image_spec

_CLIP = "clip"
_KINDS = (_CLIP, "siglip")
_VISION, _TEXT, _JOINT = "vision_model", "text_model", "model"
_MASK, _POOLED = "attention_mask", "pooler_output"
_SETTINGS = "tokenizer_config.json"
_CLIP_SCALE = 100.0
"""Bound that CLIP's training keeps its scale at, and where every published model ended; the graphs do not hold it."""


def holds_dual_encoder(found: ForeignFolder, config: Mapping[str, Any]) -> bool:
    """Whether a folder has the graphs of a dual encoder."""
    joint = found.graph(_JOINT) is not None and config.get("model_type") in _KINDS
    return joint or (found.graph(_VISION) is not None and found.graph(_TEXT) is not None)


def describe_dual_encoder(found: ForeignFolder, config: Mapping[str, Any]) -> Manifest:
    """A manifest for both towers with their projections.

    SigLIP judges each pair of image and text by itself, so that it chooses among no labels.

    Raises:
        BundleError: graphs of another model, or with other inputs.
    """
    kind = config.get("model_type")
    if kind not in _KINDS:
        raise BundleError(f"`{found.path.name}` is a `{kind}` model, expected {' or '.join(_KINDS)}", SERVED)
    contrastive = kind == _CLIP
    graphs = _towers(found, contrastive)
    image, text_encoder = (*graphs, *graphs)[:2]
    image_output, text_output = _output(graphs[image], "image_embeds"), _output(graphs[text_encoder], "text_embeds")
    dimension = graphs[image].output(image_output).shape[-1]
    if not isinstance(dimension, int):
        dimension = config.get("projection_dim", 512) if contrastive else _section(config).get("hidden_size", 768)
    graphs = {role: _with_dimension(graph, {image_output, text_output}, dimension) for role, graph in graphs.items()}
    embed = EmbedSpec(
        (image,),
        (text_encoder,),
        dimension,
        _CLIP_SCALE if contrastive else 1.0,
        image_output=image_output,
        text_output=text_output,
        templates=("a photo of a {}.",) if contrastive else ("{}",),
        normalised=False,
        joint=len(graphs) == 1,
        mask=_MASK if any(tensor.name == _MASK for tensor in graphs[text_encoder].inputs) else "",
    )
    pixels = image_spec(found.json(PREPROCESSOR), PIXELS)
    text = _clip_text(found, config) if contrastive else _siglip_text(found, config)
    tasks = ("embed", "classify", "match", "search") if contrastive else ("embed", "match", "search")
    return found.manifest(config, tasks, graphs=graphs, image=pixels, text=text, embed=embed)


def _towers(found: ForeignFolder, masked: bool) -> dict[str, GraphSpec]:
    """The two graphs by role, or the one that Optimum makes of both towers."""
    if not found.graph(_VISION):
        graphs, expected = {"dual_encoder": found.spec(_JOINT)}, [{PIXELS, IDS} | ({_MASK} if masked else set())]
    else:
        graphs = {"image_encoder": found.spec(_VISION), "text_encoder": found.spec(_TEXT)}
        expected = [{PIXELS}, {IDS}]
    for graph, names in zip(graphs.values(), expected):
        taken = {tensor.name for tensor in graph.inputs}
        if taken != names:
            shown = ", ".join(f"`{tensor.name}`" for tensor in graph.inputs)
            wanted = " and ".join(f"`{name}`" for name in sorted(names))
            alone = " alone" if len(names) == 1 else ""
            raise BundleError(f"`{graph.file}` takes {shown}, expected {wanted}{alone}", SERVED)
    return graphs


def _output(graph: GraphSpec, name: str) -> str:
    """The embedding's name; that of the pooled states where a tower has nothing behind them."""
    names = [tensor.name for tensor in graph.outputs]
    return name if name in names or _POOLED not in names else _POOLED


def _with_dimension(graph: GraphSpec, names: set[str], dimension: int) -> GraphSpec:
    outputs = (replace(t, shape=(*t.shape[:-1], dimension)) if t.name in names else t for t in graph.outputs)
    return replace(graph, outputs=tuple(outputs))


def _section(config: Mapping[str, Any]) -> dict[str, Any]:
    section = config.get("text_config")
    return section if isinstance(section, dict) else {}


def _ids(found: ForeignFolder) -> dict[str, int]:
    """Special ids by their text."""
    tokens = found.json(TOKENIZER).get("added_tokens", [])
    return {str(t.get("content")): t.get("id") for t in tokens}


def _clip_text(found: ForeignFolder, config: Mapping[str, Any]) -> TextSpec:
    """Start and end by their names in the tokenizer: configurations of CLIP are known to hold other ids."""
    section, tokens = _section(config), _ids(found)
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
        input=IDS,
    )


def _siglip_text(found: ForeignFolder, config: Mapping[str, Any]) -> TextSpec:
    """Texts are padded to the context, which its last state reads, and end as the tokenizer's settings say."""
    section, tokens, settings = _section(config), _ids(found), found.json(_SETTINGS)

    def known(name: str) -> int:
        token = settings.get(name)
        number = tokens.get(str(token.get("content") if isinstance(token, dict) else token))
        if not isinstance(number, int):
            raise BundleError(f"tokenizer.json has no id for the `{name}` of {_SETTINGS}", "is it the model's own?")
        return number

    return TextSpec(
        found.add(found.path / TOKENIZER),
        context=section.get("max_position_embeddings", 64),
        vocabulary=section.get("vocab_size", 32000),
        pad_id=known("pad_token"),
        end_id=known("eos_token"),
        pad_to_context=True,
        input=IDS,
    )
