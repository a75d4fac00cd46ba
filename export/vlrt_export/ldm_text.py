"""The text encoder of the original latent diffusion model: its weights in diffusers' layout, and its graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vlrt_export.diffusers_folder import Component
from vlrt_export.graph import Graph
from vlrt_export.modules.ldm_bert import LdmBert, LdmBertSizes
from vlrt_export.unet_graphs import STATES
from vlrt_export.weight_layout import Layout, Part, build, check_surplus, invert, linear, names_of, same

ENCODER = "text_encoder"
_HEAD = r"^to_logits\.|position_ids$"


def load_text(component: Component) -> LdmBert:
    """Builds the encoder with a component's weights, or random ones.

    Raises:
        VlrtError: a tensor is missing, left over, of another shape or dtype.
    """
    sizes = _sizes(component.config)
    if component.checkpoint is None:
        return component.build(lambda: LdmBert(sizes))
    layout = text_layout(sizes.layers)
    tensors = component.checkpoint.tensors
    check_surplus(tensors, names_of(layout), _HEAD, component.where)
    return build(lambda: LdmBert(sizes), layout, tensors, component.where)


def text_layout(layers: int) -> Layout:
    """Where diffusers' `LDMBertModel` keeps the weights of `LdmBert`."""
    found: Layout = {
        "tokens.weight": Part(("model.embed_tokens.weight",)),
        "places": Part(("model.embed_positions.weight",)),
        **same("norm", "model.layer_norm"),
    }
    for layer in range(layers):
        ours, theirs = f"layers.{layer}", f"model.layers.{layer}"
        found |= same(f"{ours}.norm1", f"{theirs}.self_attn_layer_norm")
        found |= same(f"{ours}.norm2", f"{theirs}.final_layer_norm")
        found |= linear(f"{ours}.qkv", *(f"{theirs}.self_attn.{which}_proj" for which in "qkv"), bias=False)
        found |= linear(f"{ours}.output", f"{theirs}.self_attn.out_proj")
        for name in ("fc1", "fc2"):
            found |= linear(f"{ours}.{name}", f"{theirs}.{name}")
    return found


def text_graph(model: LdmBert, tolerance: float) -> Graph:
    """Ids [N, L] to the prompt's states [N, L, W]."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 5), (1, model.sizes.context), (3, 4))
    cases = [{"input_ids": torch.randint(0, model.sizes.vocabulary, shape, generator=generator)} for shape in shapes]
    axes = {0: "batch", 1: "length"}
    return Graph(
        role=ENCODER,
        module=model,
        inputs=cases[0],
        outputs=(STATES,),
        dynamic={"input_ids": axes},
        output_axes={STATES: axes},
        cases=cases[1:],
        tolerance=tolerance,
    )


def diffusers_text(model: LdmBert, component: Component) -> Any:
    """Diffusers' own class with the same weights."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    reference = LDMBertModel(LDMBertConfig(**dict(component.config)))
    weights = invert(model, text_layout(model.sizes.layers))
    missing, _ = reference.load_state_dict(weights, strict=False)
    lacking = [name for name in missing if not name.startswith("to_logits.")]
    if lacking:
        raise ValueError(f"the reference was given no `{lacking[0]}`")
    return reference.eval()


def _sizes(config: Mapping[str, Any]) -> LdmBertSizes:
    given = {
        "vocabulary": "vocab_size",
        "context": "max_position_embeddings",
        "width": "d_model",
        "layers": "encoder_layers",
        "heads": "encoder_attention_heads",
        "head_width": "head_dim",
        "feed_forward": "encoder_ffn_dim",
        "activation": "activation_function",
    }
    return LdmBertSizes(**{ours: config[theirs] for ours, theirs in given.items() if theirs in config})
