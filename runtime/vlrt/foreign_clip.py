"""CLIP as others export it: two towers as transformers.js splits them, or the one graph that Optimum makes of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlrt.errors import BundleError
from vlrt.foreign_folder import IDS, PIXELS, PREPROCESSOR, SERVED, TOKENIZER, ForeignFolder
from vlrt.manifest import EmbedSpec, GraphSpec, Manifest, TextSpec
from vlrt.preprocessor_config import image_spec

_VISION, _TEXT, _JOINT = "vision_model", "text_model", "model"
_MASK = "attention_mask"
_CLIP_SCALE = 100.0
"""Bound that CLIP's training keeps its scale at, and where every published model ended; the graphs do not hold it."""


def holds_clip(found: ForeignFolder, config: Mapping[str, Any]) -> bool:
    """Whether a folder has the graphs of a dual encoder."""
    joint = found.graph(_JOINT) is not None and config.get("model_type") == "clip"
    return joint or (found.graph(_VISION) is not None and found.graph(_TEXT) is not None)


def describe_clip(found: ForeignFolder, config: Mapping[str, Any]) -> Manifest:
    """A manifest for both towers with their projections.

    Raises:
        BundleError: graphs of another model, or with other inputs.
    """
    if config.get("model_type") != "clip":
        raise BundleError(f"`{found.path.name}` is a `{config.get('model_type')}` model, expected `clip`", SERVED)
    graphs = _towers(found)
    image, text_encoder = (*graphs, *graphs)[:2]
    dimension = graphs[image].output("image_embeds").shape[-1]
    if not isinstance(dimension, int):
        dimension = config.get("projection_dim", 512)
    graphs = {role: _with_dimension(graph, dimension) for role, graph in graphs.items()}
    embed = EmbedSpec(
        (image,),
        (text_encoder,),
        dimension,
        _CLIP_SCALE,
        image_output="image_embeds",
        text_output="text_embeds",
        templates=("a photo of a {}.",),
        normalised=False,
        joint=len(graphs) == 1,
        mask=_MASK if any(tensor.name == _MASK for tensor in graphs[text_encoder].inputs) else "",
    )
    pixels, text = image_spec(found.json(PREPROCESSOR), PIXELS), _clip_text(found, config)
    tasks = ("embed", "classify", "match", "search")
    return found.manifest(config, tasks, graphs=graphs, image=pixels, text=text, embed=embed)


def _towers(found: ForeignFolder) -> dict[str, GraphSpec]:
    """The two graphs by role, or the one that Optimum makes of both towers."""
    if not found.graph(_VISION):
        graphs, expected = {"dual_encoder": found.spec(_JOINT)}, [{PIXELS, IDS, _MASK}]
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


def _with_dimension(graph: GraphSpec, dimension: int) -> GraphSpec:
    outputs = (
        replace(t, shape=(*t.shape[:-1], dimension)) if t.name in ("image_embeds", "text_embeds") else t
        for t in graph.outputs
    )
    return replace(graph, outputs=tuple(outputs))


def _clip_text(found: ForeignFolder, config: Mapping[str, Any]) -> TextSpec:
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
        input=IDS,
    )
