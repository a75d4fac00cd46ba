"""UnCLIP's rung 4: diffusers' own pipelines against the staged bundle, with the same seed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.manifest import Measurement
from vlrt.picture_file import Painting
from vlrt.tasks.generate import Painter
from vlrt.tasks.variations import Varier
from vlrt_export.diffusers_folder import Component, Pipeline
from vlrt_export.graph import Check
from vlrt_export.picture_checks import measure_picture, photograph

PROMPT = "a red dog"
_SEEDS = (7, 8, 9)
_STEPS = {"prior": 3, "decoder": 3, "super_resolution": 2}


def unclip_checks(pipeline: Pipeline, limit: float) -> Sequence[Check]:
    """Text to image and variations, each as far as the pipeline has what it needs; the middle one of three seeds.

    The schedule's last timestep divides a predicted noise by 5·10⁻⁵, so in the first step roundings of the seventh
    digit decide single pixels of a picture, in the reference as here: one seed in a few is far off.
    """

    def check(folder: Path) -> Iterator[Measurement]:
        bundle, reference = Bundle.open(folder), Reference(pipeline)
        if "prior" in pipeline:
            yield _middle(
                "picture.generate",
                lambda seed: Painter(bundle)(PROMPT, seed=seed, steps=_STEPS),
                lambda seed: reference.generate(PROMPT, seed),
                limit,
            )
        if "image_encoder" in pipeline:
            steps = {name: count for name, count in _STEPS.items() if name != "prior"}
            start = photograph(61, 97)
            yield _middle(
                "picture.variations",
                lambda seed: Varier(bundle)(start, seed=seed, steps=steps),
                lambda seed: reference.vary(start, seed),
                limit,
            )

    return (check,)


def _middle(
    stage: str, ours: Callable[[int], Painting], theirs: Callable[[int], Image.Image], limit: float
) -> Measurement:
    found = [measure_picture(stage, ours(seed).pixels, theirs(seed), limit) for seed in _SEEDS]
    middle = sorted(found, key=lambda measured: measured.value)[len(found) // 2]
    return replace(middle, metric=f"PSNR in dB, the middle one of {len(found)} seeds")


class Reference:
    """Diffusers' unCLIP pipelines around a folder's components."""

    def __init__(self, pipeline: Pipeline) -> None:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizerFast

        text = pipeline["text_encoder"]
        self.pipeline = pipeline
        self.shared: dict[str, Any] = {
            "text_encoder": _loaded(CLIPTextModelWithProjection(CLIPTextConfig(**dict(text.config))), text),
            "tokenizer": CLIPTokenizerFast.from_pretrained(str(pipeline["tokenizer"].folder)),
            "text_proj": _text_projection(pipeline["text_proj"]),
        }
        for name in ("decoder", "super_res_first", "super_res_last"):
            self.shared[name] = pipeline[name].model()
        for name in ("decoder_scheduler", "super_res_scheduler"):
            self.shared[name] = _scheduler(pipeline[name])

    def generate(self, prompt: str, seed: int, steps: Mapping[str, int] = _STEPS) -> Image.Image:
        """The picture of a prompt."""
        from diffusers import PriorTransformer, UnCLIPPipeline

        component = self.pipeline["prior"]
        prior = _loaded(PriorTransformer.from_config(dict(component.config)), component)
        scheduler = _scheduler(self.pipeline["prior_scheduler"])
        return self._run(
            lambda: UnCLIPPipeline(prior=prior, prior_scheduler=scheduler, **self.shared),
            seed,
            steps,
            prompt=prompt,
            prior_num_inference_steps=steps["prior"],
        )

    def vary(self, start: Image.Image | None, seed: int, steps: Mapping[str, int] = _STEPS, **more: Any) -> Image.Image:
        """The picture of a photograph, or of an embedding given in its place."""
        from diffusers import UnCLIPImageVariationPipeline
        from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

        image = self.pipeline["image_encoder"]
        encoder = _loaded(CLIPVisionModelWithProjection(CLIPVisionConfig(**dict(image.config))), image)
        extractor = CLIPImageProcessor(**dict(self.pipeline["feature_extractor"].config))
        return self._run(
            lambda: UnCLIPImageVariationPipeline(image_encoder=encoder, feature_extractor=extractor, **self.shared),
            seed,
            steps,
            image=start,
            **more,
        )

    def _run(self, make: Any, seed: int, steps: Mapping[str, int], **arguments: Any) -> Image.Image:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pipelines are called deprecated
            pipe = make()
            pipe.set_progress_bar_config(disable=True)
            found = pipe(
                generator=torch.Generator().manual_seed(seed),
                decoder_num_inference_steps=steps["decoder"],
                super_res_num_inference_steps=steps["super_resolution"],
                **arguments,
            )
        picture: Image.Image = found.images[0]
        return picture


def _loaded(model: Any, component: Component) -> Any:
    """A library's model with a component's own tensors; these models compute constants when they are made."""
    if component.checkpoint is None:
        raise ValueError(f"`{component.where}` has no weights")
    tensors = component.checkpoint.tensors
    model.load_state_dict({name: tensors[name].float() for name in model.state_dict()})
    return model.eval()


def _text_projection(component: Component) -> Any:
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel

    return component.build(lambda: UnCLIPTextProjModel(**_own(component.config)))


def _scheduler(component: Component) -> Any:
    from diffusers import UnCLIPScheduler

    return UnCLIPScheduler.from_config(dict(component.config))


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}
