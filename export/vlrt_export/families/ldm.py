"""The original latent diffusion model (Rombach et al., arXiv 2112.10752): words to pictures, in diffusers' layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from vlrt.bundle import Bundle
from vlrt.diffusion_sections import DiffusionSpec, PromptSpec
from vlrt.errors import VlrtError
from vlrt.manifest import Measurement, TextSpec
from vlrt.tasks import load
from vlrt.text import TextCodec
from vlrt_export import ldm_text, picture_checks
from vlrt_export.diffusers_folder import Pipeline, open_pipeline, random_pipeline, source_of
from vlrt_export.diffusers_schedule import read_schedule
from vlrt_export.graph import Check, Plan
from vlrt_export.latent_diffusion import TEXT, LatentModel
from vlrt_export.modules.ldm_bert import LdmBert
from vlrt_export.request import Request
from vlrt_export.text_files import FILE, find_tokenizer, stand_in, start_and_end

_KINDS = {
    "unet": "UNet2DConditionModel",
    "vqvae": "AutoencoderKL",
    "bert": "LDMBertModel",
    "scheduler": "DDIMScheduler",
}
_SPECIAL = {0: "[PAD]", 1: "[UNK]", 2: "[CLS]", 3: "[SEP]"}
_NAMES = ("pad_token", "unk_token", "cls_token", "sep_token")
_GUIDANCE = 6.0
"""Of the published model's card; the pipeline itself has none by default."""

_CARD = "Paints small pictures of what a sentence says; the first of its kind, and weak beside its successors."
_PROMPT, _STEPS, _SEED = "a painting of a squirrel", 3, 7


def build(request: Request) -> Plan:
    """Plans the bundle of an `LDMTextToImagePipeline`, or of random weights in the published sizes.

    Options: `unet`, `vqvae`, `bert`, `scheduler` (random weights only: configurations), `tokenizer`.

    Raises:
        VlrtError: the folder is not such a pipeline, is damaged, or has no tokenizer.
    """
    random = request.random
    pipeline = (
        random_pipeline("LDMTextToImagePipeline", _KINDS, request.options, request.seed)
        if random
        else open_pipeline(request.checkpoint())
    )
    component = pipeline["scheduler"]
    sampling = read_schedule({"_class_name": component.kind, **component.config})
    model = LatentModel(pipeline["unet"].model(), pipeline["vqvae"].model(), sampling)
    if model.kind != TEXT:
        raise VlrtError(f"`{pipeline.origin}` does not paint from words alone", "is it of the family stable-diffusion?")
    text = ldm_text.load_text(pipeline["bert"])
    tokenizer = _tokenizer(request, pipeline, text)
    tolerance = request.tolerance("graph", 1e-3)
    stage = replace(model.stage(), guidance=_GUIDANCE)
    notes = (sampling.note,) if sampling.note else ()
    return Plan(
        name=request.name,
        family="ldm",
        tasks=("generate",),
        graphs=(ldm_text.text_graph(text, tolerance), *model.graphs(tolerance, encodes=False)),
        source=source_of(request, pipeline, notes),
        diffusion=DiffusionSpec((stage,), (PromptSpec(_words(tokenizer, text), (ldm_text.ENCODER,)),)),
        files={FILE: str(tokenizer.to_str()).encode()},
        card=_CARD,
        checks=_checks(model, text, pipeline, request.tolerance("psnr", picture_checks.LEAST)),
    )


def _tokenizer(request: Request, pipeline: Pipeline, text: LdmBert) -> Tokenizer:
    given = request.option("tokenizer")
    if given is None and request.random:
        return stand_in(text.sizes.vocabulary, _SPECIAL)
    folder = pipeline["tokenizer"].folder if "tokenizer" in pipeline else None
    return find_tokenizer(None, given or (str(folder) if folder else None), text.sizes.vocabulary)


def _words(tokenizer: Tokenizer, text: LdmBert) -> TextSpec:
    start, end = start_and_end(tokenizer, "[CLS]", "[SEP]")
    pad = tokenizer.token_to_id("[PAD]")
    context, vocabulary = text.sizes.context, text.sizes.vocabulary
    return TextSpec(FILE, context, vocabulary, 0 if pad is None else pad, start, end, pad_to_context=True)


def _checks(model: LatentModel, text: LdmBert, pipeline: Pipeline, limit: float) -> tuple[Check, ...]:
    def pictures(folder: Path) -> Iterator[Measurement]:
        bundle = Bundle.open(folder)
        codec = TextCodec.open(bundle, _spec(bundle).prompts[0].text)
        stage = _spec(bundle).stages[0]
        side = max(16, 2 * stage.multiple * stage.factor)
        found = load("generate", folder)(_PROMPT, seed=_SEED, steps=_STEPS, height=side, width=2 * side)
        reference = _reference(model, text, pipeline, codec)
        expected = reference(
            _PROMPT,
            # The reference takes a latent for 8 x 8 pixels whatever its autoencoder does.
            height=side * 8 // stage.factor,
            width=2 * side * 8 // stage.factor,
            num_inference_steps=_STEPS,
            guidance_scale=stage.guidance,
            generator=torch.Generator().manual_seed(_SEED),
        ).images[0]
        yield picture_checks.measure_picture("picture.generate", found.pixels, expected, limit)

    return (pictures,)


def _spec(bundle: Bundle) -> DiffusionSpec:
    if bundle.manifest.diffusion is None:
        raise ValueError("the staged bundle has no diffusion section")
    return bundle.manifest.diffusion


def _reference(model: LatentModel, text: LdmBert, pipeline: Pipeline, codec: TextCodec) -> Any:
    """Diffusers' pipeline around the same weights."""
    import diffusers

    component = pipeline["scheduler"]
    made = diffusers.LDMTextToImagePipeline(
        vqvae=model.autoencoder,
        bert=ldm_text.diffusers_text(text, pipeline["bert"]),
        tokenizer=_reference_tokenizer(pipeline, codec),
        unet=model.unet,
        scheduler=getattr(diffusers, component.kind).from_config(dict(component.config)),
    )
    made.set_progress_bar_config(disable=True)
    return made


def _reference_tokenizer(pipeline: Pipeline, codec: TextCodec) -> Any:
    """Transformers' own, cut to the context, where the pipeline takes 77 places for granted."""
    import transformers

    folder = pipeline["tokenizer"].folder if "tokenizer" in pipeline else None
    if folder is not None:
        made = transformers.BertTokenizer.from_pretrained(folder)
    else:
        made = transformers.BertTokenizerFast(tokenizer_object=codec.tokenizer, **dict(zip(_NAMES, _SPECIAL.values())))
    return lambda texts, **options: made(texts, **options | {"max_length": codec.spec.context})
