"""Where the parameters of a diffusion prior lie in diffusers' state dict, and how large it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlrt.errors import VlrtError
from vlrt_export.diffusers_folder import Component
from vlrt_export.modules.prior import Prior, PriorSizes
from vlrt_export.weight_layout import Layout, Part, linear, same

_SERVED: dict[str, tuple[Any, ...]] = {
    "added_emb_type": ("prd",),
    "encoder_hid_proj_type": ("linear",),
    "norm_in_type": (None,),
    "embedding_proj_norm_type": (None,),
    "time_embed_act_fn": ("silu",),
    "additional_embeddings": (4,),
    "time_embed_dim": (None,),
    "embedding_proj_dim": (None,),
    "clip_embed_dim": (None,),
}
"""Settings of `PriorTransformer` under which our module equals it."""


def load_prior(component: Component) -> Prior:
    """Builds a prior with the weights of diffusers' ``PriorTransformer``.

    Raises:
        VlrtError: a setting that unCLIP's prior does not have, or weights that do not fit.
    """
    sizes = prior_sizes(component.config)
    return component.build(lambda: Prior(sizes), prior_layout(sizes))


def prior_sizes(config: Mapping[str, Any]) -> PriorSizes:
    """Sizes of a ``PriorTransformer``'s configuration, with diffusers' defaults.

    Raises:
        VlrtError: a setting that unCLIP's prior does not have.
    """
    for name, served in _SERVED.items():
        if config.get(name, served[0]) not in served:
            what = f"the prior has `{name}` {config[name]!r}, known is {served[0]!r}"
            raise VlrtError(what, "only the prior of unCLIP is served")
    return PriorSizes(
        int(config.get("embedding_dim", 768)),
        int(config.get("num_embeddings", 77)),
        int(config.get("num_layers", 20)),
        int(config.get("num_attention_heads", 32)),
        int(config.get("attention_head_dim", 64)),
    )


def prior_layout(sizes: PriorSizes) -> Layout:
    """Names of diffusers' parameters by ours."""
    found: Layout = {
        "position": Part(("positional_embedding",)),
        "read": Part(("prd_embedding",)),
        "mean": Part(("clip_mean",)),
        "std": Part(("clip_std",)),
    }
    found |= linear("time1", "time_embedding.linear_1") | linear("time2", "time_embedding.linear_2")
    found |= linear("sample", "proj_in") | linear("embedding", "embedding_proj")
    found |= linear("states", "encoder_hidden_states_proj") | linear("head", "proj_to_clip_embeddings")
    found |= same("norm", "norm_out")
    for number in range(sizes.layers):
        ours, theirs = f"layers.{number}", f"transformer_blocks.{number}"
        found |= same(f"{ours}.norm1", f"{theirs}.norm1") | same(f"{ours}.norm2", f"{theirs}.norm3")
        found |= linear(f"{ours}.qkv", *(f"{theirs}.attn1.to_{kind}" for kind in "qkv"))
        found |= linear(f"{ours}.output", f"{theirs}.attn1.to_out.0")
        found |= linear(f"{ours}.inner", f"{theirs}.ff.net.0.proj") | linear(f"{ours}.outer", f"{theirs}.ff.net.2")
    return found
