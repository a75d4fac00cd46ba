"""Stable Diffusion (Rombach et al., arXiv 2112.10752) from diffusers' folders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlrt.diffusion_sections import DiffusionSpec, PromptSpec
from vlrt.errors import VlrtError
from vlrt_export import autoencoder_graphs, stable_diffusion_reference
from vlrt_export.clip_prompt import clip_prompt_graph, load_clip_prompt, random_clip_prompt
from vlrt_export.clip_tokenizer import FILE, ClipTokenizer, find_tokenizer, stand_in
from vlrt_export.consistency_decoder import load_decoder
from vlrt_export.diffusers_folder import Pipeline, open_pipeline, random_pipeline, source_of
from vlrt_export.diffusers_schedule import Sampling, read_schedule
from vlrt_export.graph import Plan
from vlrt_export.latent_diffusion import TASKS, TEXT, UPSCALE, LatentModel
from vlrt_export.modules.clip_prompt import ClipPrompt
from vlrt_export.request import Request
from vlrt_export.unet_graphs import STATES

_ENCODER = "text_encoder"
_KINDS = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "scheduler": "PNDMScheduler",
}
_CARD = (
    "Paints what a sentence says. Hands, text, counts and relations often fail, and its training pictures come from "
    "the web, with the biases of the web. Bundles have no safety checker and add no watermark."
)
_LARGEST = {UPSCALE: 4096}


def build(request: Request) -> Plan:
    """Plans the bundle of a Stable Diffusion 1.x or 2.x pipeline, or of random weights in the zoo's sizes.

    Text-to-image models, those distilled to latent consistency, inpainting models with nine channels and the x4
    upscaler are told apart by their UNets.

    Options: `unet`, `vae`, `text_encoder`, `scheduler` (random weights only: configurations), `tokenizer`, `decoder`
    (a consistency decoder in the place of the pipeline's own: ``consistency``, a folder or a hub id).

    Raises:
        VlrtError: the folder is not such a pipeline, is damaged, or has no tokenizer.
    """
    pipeline = _pipeline(request)
    sampling = read_schedule(_scheduler(pipeline))
    noise = read_schedule(pipeline["low_res_scheduler"].config).schedule if "low_res_scheduler" in pipeline else None
    model = _with_decoder(
        LatentModel(pipeline["unet"].model(), pipeline["vae"].model(), sampling, noise), request.option("decoder")
    )
    text = _text_encoder(pipeline)
    tokenizer = _tokenizer(request, pipeline, text)
    tolerance = request.tolerance("graph", 1e-3)
    return Plan(
        name=request.name,
        family="stable-diffusion",
        tasks=_tasks(model),
        graphs=(
            clip_prompt_graph(text, _ENCODER, (STATES,), tolerance),
            *model.graphs(tolerance, encodes=model.kind != UPSCALE),
        ),
        source=source_of(request, pipeline, _notes(sampling, tokenizer)),
        diffusion=_spec(model, text, tokenizer),
        files={FILE: tokenizer.json()},
        card=_CARD,
        checks=stable_diffusion_reference.checks(model, text, pipeline, request.tolerance),
    )


def _with_decoder(model: LatentModel, decoder: str | None) -> LatentModel:
    if decoder is None:
        return model
    if model.kind != TEXT:
        raise VlrtError("a consistency decoder is for text-to-image models", "leave `--decoder` out")
    return replace(model, autoencoder=load_decoder(decoder), previews=model.autoencoder)


def _pipeline(request: Request) -> Pipeline:
    if request.random:
        return random_pipeline("StableDiffusionPipeline", _KINDS, request.options, request.seed)
    return open_pipeline(request.checkpoint())


def _scheduler(pipeline: Pipeline) -> dict[str, Any]:
    component = pipeline["scheduler"]
    return {"_class_name": component.kind, **component.config}


def _tasks(model: LatentModel) -> tuple[str, ...]:
    """Distilled models have no words to be guided away from, and walk too few steps to start in their midst."""
    return ("generate",) if model.distilled and model.kind == TEXT else TASKS[model.kind]


def _text_encoder(pipeline: Pipeline) -> ClipPrompt:
    component = pipeline["text_encoder"]
    if component.checkpoint is None:
        return random_clip_prompt(component.config, component.seed)
    return load_clip_prompt(component.config, component.checkpoint.tensors, component.where)


def _tokenizer(request: Request, pipeline: Pipeline, text: ClipPrompt) -> ClipTokenizer:
    given = request.option("tokenizer")
    if given is None and request.random:
        return stand_in(text.sizes.vocabulary)
    if given is None and "tokenizer" in pipeline:
        return replace(find_tokenizer(None, str(pipeline["tokenizer"].folder)), note="")
    return find_tokenizer(None, given)


def _notes(sampling: Sampling, tokenizer: ClipTokenizer) -> tuple[str, ...]:
    notes = [f"tokenizer: {tokenizer.note}"] if tokenizer.note else []
    return (*notes, *([sampling.note] if sampling.note else []))


def _spec(model: LatentModel, text: ClipPrompt, tokenizer: ClipTokenizer) -> DiffusionSpec:
    words = replace(tokenizer.text_spec(text.sizes.context, text.sizes.vocabulary), pad_to_context=True)
    stages = model.stages()
    return DiffusionSpec(
        stages=stages,
        prompts=(PromptSpec(words, (_ENCODER,)),),
        encode=(autoencoder_graphs.ENCODER,) if model.kind != UPSCALE else (),
        encode_scale=model.scale,
        inpaint=model.inpaint() if "inpaint" in _tasks(model) else {},
        upscale_start=stages[0].name if model.kind == UPSCALE else "",
        max_size=_LARGEST.get(model.kind, 2048),
    )
