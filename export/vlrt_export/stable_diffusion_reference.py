"""Stable Diffusion's rungs: ids, and pictures of every task, against transformers and diffusers' pipelines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlrt.bundle import Bundle
from vlrt.manifest import Measurement
from vlrt.tasks import load
from vlrt.text import TextCodec
from vlrt_export import picture_checks
from vlrt_export.clip_prompt import to_transformers
from vlrt_export.clip_reference import SENTENCES
from vlrt_export.diffusers_folder import Pipeline
from vlrt_export.graph import Check
from vlrt_export.latent_diffusion import INPAINT, TEXT, UPSCALE, LatentModel
from vlrt_export.modules.clip_prompt import ClipPrompt

Tolerance = Callable[[str, float], float]

PROMPT, NEGATIVE = "a photograph of two dogs in the snow", "people"
_STEPS, _SEED = 3, 7
_LEAST_SIDE = 16


def checks(model: LatentModel, text: ClipPrompt, pipeline: Pipeline, tolerance: Tolerance) -> Sequence[Check]:
    """Ids of prompts, and one picture of each task with few steps and of a small size."""

    def ids(folder: Path) -> Iterator[Measurement]:
        yield _measure_ids(folder, pipeline)

    def pictures(folder: Path) -> Iterator[Measurement]:
        limit = tolerance("psnr", picture_checks.LEAST)
        reference = Reference(model, text, pipeline, TextCodec.open(bundle := Bundle.open(folder), _words(bundle)))
        for task in bundle.manifest.tasks:
            found = load(task, folder)(*reference.given(task), PROMPT, **reference.options(task))
            yield picture_checks.measure_picture(f"picture.{task}", found.pixels, reference.picture(task), limit)

    return ids, pictures


class Reference:
    """Diffusers' pipelines around the same weights.

    Args:
        codec: gives the ids, which another rung holds against transformers' tokenizer.
    """

    def __init__(self, model: LatentModel, text: ClipPrompt, pipeline: Pipeline, codec: TextCodec) -> None:
        self.model, self.pipeline, self.codec = model, pipeline, codec
        self.encoder = _transformers_encoder(text, pipeline)
        self.stage = model.stage()
        self.side = max(_LEAST_SIDE, 2 * self.stage.multiple * self.stage.factor)

    def given(self, task: str) -> tuple[Any, ...]:
        """The pictures that a task takes before its prompt."""
        height, width = self.side, 2 * self.side
        if task == "generate":
            return ()
        if self.model.kind == UPSCALE:
            step = self.stage.multiple * self.stage.factor
            return (picture_checks.photograph(2 * step, 3 * step),)
        photograph = picture_checks.photograph(height, width)
        return (photograph, picture_checks.mask(height, width)) if task == "inpaint" else (photograph,)

    def options(self, task: str) -> dict[str, Any]:
        """What `vlrt` is asked for."""
        found: dict[str, Any] = {"seed": _SEED, "steps": {self.stage.name: _STEPS}}
        found |= {} if self.model.distilled else {"negative": NEGATIVE}
        found |= {"height": self.side, "width": 2 * self.side} if task == "generate" else {}
        return found | ({"strength": 0.7} if task == "edit" else {})

    def picture(self, task: str) -> Any:
        """The reference's picture."""
        made, options = self._pipeline(task), self.options(task)
        made.set_progress_bar_config(disable=True)
        negative = options.pop("negative", "")
        options["generator"] = torch.Generator().manual_seed(options.pop("seed"))
        options |= {"num_inference_steps": _STEPS}
        del options["steps"]
        photographs = self.given(task)
        options |= dict(zip(("image", "mask_image"), photographs))
        if task == "inpaint":
            options |= dict(zip(("width", "height"), photographs[0].size)) | {"strength": 1.0}
        with torch.no_grad():
            states = {"prompt_embeds": self.states(PROMPT), "negative_prompt_embeds": self.states(negative)}
            return made(**states, guidance_scale=self.stage.guidance, **options).images[0]

    def states(self, prompt: str) -> Tensor:
        """The library's states of a prompt, [1, L, W]."""
        ids = torch.from_numpy(self.codec.pad([self.codec.prompt_row(prompt)]))
        states: Tensor = self.encoder(ids)[0]
        return states

    def _pipeline(self, task: str) -> Any:
        import diffusers

        model = self.model
        scheduler = getattr(diffusers, self.pipeline["scheduler"].kind).from_config(
            dict(self.pipeline["scheduler"].config)
        )
        parts = {"vae": model.autoencoder, "unet": model.unet, "text_encoder": self.encoder, "tokenizer": None}
        if model.kind == UPSCALE:
            low = self.pipeline["low_res_scheduler"]
            noise = getattr(diffusers, low.kind).from_config(dict(low.config))
            return diffusers.StableDiffusionUpscalePipeline(**parts, scheduler=scheduler, low_res_scheduler=noise)
        name = {"edit": "Img2Img", "inpaint": "Inpaint"}.get(task, "") if model.kind in (TEXT, INPAINT) else ""
        unneeded = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return getattr(diffusers, f"StableDiffusion{name}Pipeline")(**parts, scheduler=scheduler, **unneeded)


def _words(bundle: Bundle) -> Any:
    spec = bundle.manifest.diffusion
    if spec is None:
        raise ValueError("the staged bundle has no diffusion section")
    return spec.prompts[0].text


def _transformers_encoder(text: ClipPrompt, pipeline: Pipeline) -> Any:
    """Transformers' `CLIPTextModel` with the checkpoint's own tensors, or with random ones under its names."""
    import transformers

    component = pipeline["text_encoder"]
    reference = transformers.CLIPTextModel(transformers.CLIPTextConfig(**dict(component.config)))
    tensors = component.checkpoint.tensors if component.checkpoint else to_transformers(text)
    missing, _ = reference.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    if missing:
        raise ValueError(f"the reference was given no `{missing[0]}`")
    return reference.eval()


def _measure_ids(folder: Path, pipeline: Pipeline) -> Measurement:
    import transformers

    bundle = Bundle.open(folder)
    codec = TextCodec.open(bundle, _words(bundle))
    given = pipeline["tokenizer"].folder if "tokenizer" in pipeline else None
    if given is not None:
        reference = transformers.CLIPTokenizer.from_pretrained(given)
    else:
        reference = transformers.CLIPTokenizerFast(tokenizer_file=str(folder / codec.spec.tokenizer))
        reference.pad_token_id = codec.spec.pad_id
    padding = {"padding": "max_length", "max_length": codec.spec.context, "truncation": True}
    wrong = 0
    for sentence in (*SENTENCES, ""):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one of the sentences is too long on purpose
            found = codec.pad([codec.prompt_row(sentence)])[0].tolist()
        wrong += found != reference(sentence, **padding)["input_ids"]
    ending = (0, f"transformers {type(reference).__name__}", transformers.__version__)
    return Measurement("ids", f"of {len(SENTENCES) + 1} prompts that differ", wrong, *ending)
