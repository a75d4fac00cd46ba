"""CLIP's image tower in diffusers' folders: from transformers' weights, as a graph from pixels to an embedding."""

from __future__ import annotations

import torch

from vlrt.errors import VlrtError
from vlrt_export.clip_checkpoint import VISION_DEFAULTS
from vlrt_export.diffusers_folder import Component
from vlrt_export.graph import Graph
from vlrt_export.modules.clip_transformer import ACTIVATIONS, TransformerSizes
from vlrt_export.modules.clip_vit import VisionTransformer, VisionTransformerSizes
from vlrt_export.weight_layout import Layout, Part, same

_DEFAULTS = VISION_DEFAULTS | {"projection_dim": 512}


def load_clip_vision(component: Component) -> VisionTransformer:
    """Builds the tower with the weights of transformers' ``CLIPVisionModelWithProjection``.

    Raises:
        VlrtError: another kind of model, or weights that do not fit.
    """
    settings = _DEFAULTS | {name: value for name, value in component.config.items() if name in _DEFAULTS}
    if settings["hidden_act"] not in ACTIVATIONS:
        what = f"`{component.where}` has the activation `{settings['hidden_act']}`"
        raise VlrtError(what, f"known are {', '.join(ACTIVATIONS)}")
    transformer = TransformerSizes(
        settings["hidden_size"],
        settings["num_hidden_layers"],
        settings["num_attention_heads"],
        settings["intermediate_size"],
        settings["hidden_act"],
        settings["layer_norm_eps"],
    )
    sizes = VisionTransformerSizes(settings["image_size"], settings["patch_size"], transformer)
    return component.build(
        lambda: VisionTransformer(sizes, settings["projection_dim"]), clip_vision_layout(transformer.layers)
    )


def clip_vision_graph(model: VisionTransformer, size: int, role: str, tolerance: float) -> Graph:
    """The graph from pixels [N, 3, size, size] to ``image_embedding`` [N, D], not normalised."""
    cases = [{"pixels": torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))} for n in (2, 1, 3)]
    return Graph(
        role=role,
        module=model,
        inputs=cases[0],
        outputs=("image_embedding",),
        dynamic={"pixels": {0: "batch"}},
        output_axes={"image_embedding": {0: "batch"}},
        cases=cases[1:],
        tolerance=tolerance,
    )


def clip_vision_layout(layers: int) -> Layout:
    """Names of transformers' parameters by ours."""
    embeddings = "vision_model.embeddings"
    found: Layout = {
        "conv1.weight": Part((f"{embeddings}.patch_embedding.weight",)),
        "class_embedding": Part((f"{embeddings}.class_embedding",)),
        "positional_embedding": Part((f"{embeddings}.position_embedding.weight",)),
        "proj": Part(("visual_projection.weight",), transpose=True),
    }
    found |= same("ln_pre", "vision_model.pre_layrnorm") | same("ln_post", "vision_model.post_layernorm")
    return found | clip_block_layout("vision_model", layers)


def clip_block_layout(tower: str, layers: int) -> Layout:
    """Names of transformers' parameters of the blocks of `tower` (``text_model``, ``vision_model``) by ours."""
    found: Layout = {}
    for number in range(layers):
        ours, theirs = f"transformer.resblocks.{number}", f"{tower}.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            three = tuple(f"{theirs}.self_attn.{which}_proj.{kind}" for which in "qkv")
            found[f"{ours}.attn.in_proj_{kind}"] = Part(three)
        found |= same(f"{ours}.attn.out_proj", f"{theirs}.self_attn.out_proj")
        found |= same(f"{ours}.ln_1", f"{theirs}.layer_norm1") | same(f"{ours}.ln_2", f"{theirs}.layer_norm2")
        found |= same(f"{ours}.mlp.c_fc", f"{theirs}.mlp.fc1") | same(f"{ours}.mlp.c_proj", f"{theirs}.mlp.fc2")
    return found
