"""unCLIP (DALL-E 2; Ramesh et al., arXiv 2204.06125) in diffusers' layout, as Karlo was published."""

from __future__ import annotations

from dataclasses import replace

from vlrt.diffusion_sections import LowResolutionSpec, PromptSpec, ScheduleSpec, StageSpec
from vlrt.manifest import DiffusionSpec, ImageSpec, TextSpec
from vlrt_export import unclip_graphs as roles
from vlrt_export.clip_image import image_spec
from vlrt_export.clip_tokenizer import FILE, ClipTokenizer, find_tokenizer, stand_in
from vlrt_export.diffusers_folder import RANDOM_NOTE, Pipeline, open_pipeline, random_pipeline, source_of
from vlrt_export.diffusers_schedule import read_schedule
from vlrt_export.graph import Plan
from vlrt_export.picture_checks import LEAST
from vlrt_export.request import Request
from vlrt_export.unclip_parts import KINDS, Parts, load_parts
from vlrt_export.unclip_reference import unclip_checks

_SMALL = "picture_small"
_CARD = (
    "Paints pictures after words by way of CLIP's image embedding: also variations of a photograph, pictures between "
    "two, and pictures moved by a difference of two sentences. Binds attributes to the wrong things, writes badly, and "
    "has the biases of pictures from the web. No safety checker runs, no watermark is written."
)


def build(request: Request) -> Plan:
    """Plans the bundle of an unCLIP pipeline, or of random weights in the zoo entry's sizes.

    Options: `image_encoder` (folder or hub id of the pipeline for variations, for its image encoder).

    Raises:
        VlrtError: a component is missing, damaged or of another kind.
    """
    pipeline = _open(request)
    parts = load_parts(pipeline)
    tokenizer = _tokenizer(pipeline, parts)
    notes = ("no safety checker", *((f"tokenizer: {tokenizer.note}",) if tokenizer.note else ()))
    text = tokenizer.text_spec(parts.text.sizes.context, parts.text.sizes.vocabulary)
    return Plan(
        name=request.name,
        family="unclip",
        tasks=_tasks(parts),
        graphs=roles.graphs(parts, request.tolerance("graph", 1e-3)),
        source=source_of(request, pipeline, notes),
        diffusion=_diffusion(pipeline, parts, replace(text, pad_to_context=True)),
        files={FILE: tokenizer.json()},
        card=RANDOM_NOTE if request.random else _CARD,
        checks=() if request.random else unclip_checks(pipeline, request.tolerance("psnr", LEAST)),
    )


def _open(request: Request) -> Pipeline:
    if request.random:
        return random_pipeline("UnCLIPPipeline", KINDS, request.option("config", {}), request.seed)
    pipeline = open_pipeline(request.checkpoint())
    other = request.option("image_encoder")
    if other is None or "image_encoder" in pipeline:
        return pipeline
    given = open_pipeline(other)
    for name in ("image_encoder", "feature_extractor"):
        pipeline = pipeline.replaced(name, given[name])
    return pipeline


def _tokenizer(pipeline: Pipeline, parts: Parts) -> ClipTokenizer:
    folder = pipeline["tokenizer"].folder if "tokenizer" in pipeline else None
    if folder is None:
        return stand_in(parts.text.sizes.vocabulary)
    found = find_tokenizer(None, str(folder))
    return replace(found, note="")


def _tasks(parts: Parts) -> tuple[str, ...]:
    words = ("generate",) if parts.prior is not None else ()
    return (*words, *(("variations", "interpolate") if parts.image_encoder is not None else ()))


def _diffusion(pipeline: Pipeline, parts: Parts, text: TextSpec) -> DiffusionSpec:
    schedules = {
        name: read_schedule(pipeline[f"{name}_scheduler"].config, name).schedule
        if f"{name}_scheduler" in pipeline
        else _default_schedule(name)
        for name in ("prior", "decoder", "super_res")
    }
    stages = [_prior_stage(parts, schedules["prior"])] if parts.prior is not None else []
    stages += [_decoder_stage(parts, schedules["decoder"]), _super_stage(parts, schedules["super_res"])]
    pictured = parts.image_encoder is not None
    return DiffusionSpec(
        stages=tuple(stages),
        prompts=(PromptSpec(text, (roles.TEXT,), mask=roles.MASK),),
        image=_image_spec(pipeline) if pictured else None,
        image_chain=(roles.IMAGE,) if pictured else (),
        variation_start=roles.DECODER if pictured else "",
        embedding=roles.IMAGE_EMBEDDING,
        text_embedding=roles.TEXT_EMBEDDING,
    )


def _default_schedule(name: str) -> ScheduleSpec:
    """Karlo's, for random weights (and a folder for variations alone has none for the prior)."""
    config: dict[str, object] = {"_class_name": "UnCLIPScheduler"}
    if name == "prior":
        config |= {"prediction_type": "sample", "clip_sample_range": 5.0}
    if name == "decoder":
        config |= {"variance_type": "learned_range"}
    return read_schedule(config, name).schedule


def _image_spec(pipeline: Pipeline) -> ImageSpec:
    size = int(pipeline["image_encoder"].config.get("image_size", 224))
    config = pipeline["feature_extractor"].config if "feature_extractor" in pipeline else {}
    return image_spec(config, size)


def _prior_stage(parts: Parts, schedule: ScheduleSpec) -> StageSpec:
    width = parts.text.dimension
    return StageSpec(
        name=roles.PRIOR,
        denoiser=roles.PRIOR,
        shape=(width,),
        schedule=schedule,
        rule="unclip",
        steps=25,
        guidance=4.0,
        prepare=(roles.PRIOR_PROMPT,),
        finish=(roles.PRIOR_EMBEDDING,),
        output=roles.IMAGE_EMBEDDING,
    )


def _decoder_stage(parts: Parts, schedule: ScheduleSpec) -> StageSpec:
    return StageSpec(
        name=roles.DECODER,
        denoiser=roles.DECODER,
        shape=_shape(parts.decoder, int(parts.decoder.config.in_channels)),
        schedule=schedule,
        rule="unclip",
        steps=25,
        guidance=8.0,
        prepare=(roles.GUIDED, roles.PROJECTION),
        prepare_unconditional=(roles.UNGUIDED, roles.PROJECTION),
        output=_SMALL,
    )


def _super_stage(parts: Parts, schedule: ScheduleSpec) -> StageSpec:
    """Without guidance and words; another model takes the last step."""
    unet = parts.super_first
    return StageSpec(
        name=roles.SUPER,
        denoiser=roles.SUPER,
        last_denoiser=roles.SUPER_LAST,
        shape=_shape(unet, int(unet.config.in_channels) // 2),
        schedule=schedule,
        rule="unclip",
        steps=7,
        low_resolution=LowResolutionSpec(_SMALL, roles.LOW, "bicubic_antialiased"),
    )


def _shape(unet: object, channels: int) -> tuple[int, int, int]:
    size = unet.config.sample_size  # type: ignore[attr-defined] # diffusers has no types
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return channels, int(height), int(width)
