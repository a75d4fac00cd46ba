"""The components of unCLIP in diffusers' folders (Karlo), as our modules and as the reference has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlrt.errors import VlrtError
from vlrt_export.clip_prompt import load_clip_prompt, random_clip_prompt
from vlrt_export.clip_vision import load_clip_vision
from vlrt_export.diffusers_folder import Component, Pipeline
from vlrt_export.modules.clip_prompt import ClipPrompt
from vlrt_export.modules.clip_vit import VisionTransformer
from vlrt_export.modules.prior import Prior
from vlrt_export.modules.unclip import DecoderText, DecoderTextSizes
from vlrt_export.prior_layout import prior_layout, prior_sizes
from vlrt_export.weight_layout import Layout, Part, linear, same

KINDS = {
    "prior": "PriorTransformer",
    "decoder": "UNet2DConditionModel",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_proj": "UnCLIPTextProjModel",
    "super_res_first": "UNet2DModel",
    "super_res_last": "UNet2DModel",
    "image_encoder": "CLIPVisionModelWithProjection",
}


@dataclass(frozen=True)
class Parts:
    """The models of an unCLIP pipeline.

    Args:
        prior: `None` where only variations are to be made.
        image_encoder: `None` where only words are read.
    """

    text: ClipPrompt
    decoder_text: DecoderText
    decoder: Any
    super_first: Any
    super_last: Any
    prior: Prior | None = None
    image_encoder: VisionTransformer | None = None


def load_parts(pipeline: Pipeline) -> Parts:
    """Builds the models.

    Raises:
        VlrtError: a component is missing, of another kind, or its weights do not fit.
    """
    if "prior" not in pipeline and "image_encoder" not in pipeline:
        raise VlrtError(f"`{pipeline.origin}` has neither `prior` nor `image_encoder`", "is it the family's?")
    return Parts(
        text=_load_prompt(pipeline["text_encoder"]),
        decoder_text=_load_text(pipeline["text_proj"]),
        decoder=pipeline["decoder"].model(),
        super_first=pipeline["super_res_first"].model(),
        super_last=pipeline["super_res_last"].model(),
        prior=_load_prior(pipeline["prior"]) if "prior" in pipeline else None,
        image_encoder=load_clip_vision(pipeline["image_encoder"]) if "image_encoder" in pipeline else None,
    )


def _load_prompt(component: Component) -> ClipPrompt:
    if component.checkpoint is None:
        return random_clip_prompt(component.config, component.seed, projected=True)
    return load_clip_prompt(component.config, component.checkpoint.tensors, component.where)


def _load_prior(component: Component) -> Prior:
    sizes = prior_sizes(component.config)
    return component.build(lambda: Prior(sizes), prior_layout(sizes))


def _load_text(component: Component) -> DecoderText:
    config = component.config
    sizes = DecoderTextSizes(
        int(config.get("clip_embeddings_dim", 768)),
        int(config["time_embed_dim"]),
        int(config["cross_attention_dim"]),
        int(config.get("clip_extra_context_tokens", 4)),
    )
    return component.build(lambda: DecoderText(sizes), text_layout())


def text_layout() -> Layout:
    """Names of diffusers' ``UnCLIPTextProjModel`` by ours."""
    found: Layout = {"unguided": Part(("learned_classifier_free_guidance_embeddings",))}
    found |= linear("text_time", "embedding_proj")
    found |= linear("image_time", "clip_image_embeddings_project_to_time_embeddings")
    found |= linear("image_states", "clip_extra_context_tokens_proj")
    found |= linear("text_states", "encoder_hidden_states_proj")
    return found | same("norm", "text_encoder_hidden_states_norm")
