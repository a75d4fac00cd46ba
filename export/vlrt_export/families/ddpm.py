"""Diffusion of pixels (Ho et al., arXiv 2006.11239; Song et al., arXiv 2010.02502), without words or by class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlrt.diffusion_sections import DiffusionSpec, StageSpec
from vlrt.errors import VlrtError
from vlrt.manifest import Measurement
from vlrt.tasks import load
from vlrt_export import picture_checks
from vlrt_export.diffusers_folder import Pipeline, open_pipeline, random_pipeline, source_of
from vlrt_export.diffusers_schedule import PIXEL_RULES, Sampling, read_schedule
from vlrt_export.graph import Check, Graph, Plan
from vlrt_export.modules.diffusion_unet import CLASS
from vlrt_export.request import Request
from vlrt_export.unet_graphs import Condition, UNetGraphs

DENOISER, COLOUR, STAGE = "denoiser", "colour", "pixels"
_KINDS = {"unet": "UNet2DModel", "scheduler": "DDPMScheduler"}
_CARD = "Paints pictures like those it was trained on, and nothing else."
_IMPLICIT_STEPS = 50
_STEPS, _SEED = 3, 7


def build(request: Request) -> Plan:
    """Plans the bundle of a `DDPMPipeline` or `DDIMPipeline`, or of random weights in the zoo's sizes.

    A UNet with class embeddings makes a class-conditional bundle.

    Options: `unet`, `scheduler` (random weights only: configurations).

    Raises:
        VlrtError: the folder is not such a pipeline, or is damaged.
    """
    pipeline = (
        random_pipeline("DDPMPipeline", _KINDS, request.options, request.seed)
        if request.random
        else open_pipeline(request.checkpoint())
    )
    component = pipeline["scheduler"]
    sampling = read_schedule({"_class_name": component.kind, **component.config})
    unet = pipeline["unet"].model()
    classes = _classes(unet)
    tolerance = request.tolerance("graph", 1e-3)
    conditions = {CLASS: Condition(below=classes)} if classes else {}
    graphs = UNetGraphs(unet, _channels(unet), conditions, denoiser=DENOISER, tolerance=tolerance)
    colour = () if _channels(unet) == 3 else (_colour_graph(_channels(unet)),)
    return Plan(
        name=request.name,
        family="ddpm",
        tasks=("generate",),
        graphs=(*graphs.graphs(), *colour),
        source=source_of(request, pipeline, (sampling.note,) if sampling.note else ()),
        diffusion=DiffusionSpec(
            (_stage(unet, sampling, graphs.multiple),),
            labels=_labels(pipeline, classes),
            label_input=CLASS if classes else "",
        ),
        card=_CARD,
        checks=_checks(unet, pipeline, classes, request.tolerance("psnr", picture_checks.LEAST)),
    )


class Colour(nn.Module):
    """Grey pictures [N, 1, H, W] as red, green and blue."""

    def forward(self, latents: Tensor) -> Tensor:
        return latents.expand(-1, 3, -1, -1)


def _colour_graph(channels: int) -> Graph:
    if channels != 1:
        raise VlrtError(f"pictures of {channels} channels are not known", "expected 1 or 3")
    axes = {0: "batch", 2: "height", 3: "width"}
    cases = [{"latents": torch.randn(*shape)} for shape in ((2, 1, 4, 6), (1, 1, 6, 4))]
    return Graph(COLOUR, Colour().eval(), cases[0], ("picture",), {"latents": axes}, {"picture": axes}, cases[1:])


def _channels(unet: Any) -> int:
    return int(unet.config.in_channels)


def _classes(unet: Any) -> int:
    kind = unet.config.get("class_embed_type")
    if kind not in (None, "timestep"):
        raise VlrtError(f"the UNet has `class_embed_type` {kind!r}, known are none and `timestep`")
    return int(unet.config.get("num_class_embeds") or 0)


def _labels(pipeline: Pipeline, classes: int) -> tuple[str, ...]:
    """Names of the classes; their numbers where the folder has none."""
    names = pipeline.settings.get("id2label")
    names = names if isinstance(names, dict) else {}
    return tuple(str(names.get(str(number), number)) for number in range(classes))


def _stage(unet: Any, sampling: Sampling, multiple: int) -> StageSpec:
    size = unet.config.sample_size or 32
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    grey = _channels(unet) != 3
    train = sampling.schedule.train_steps
    further = tuple(rule for rule in PIXEL_RULES if rule != sampling.rule)
    return StageSpec(
        name=STAGE,
        denoiser=DENOISER,
        shape=(_channels(unet), int(height), int(width)),
        schedule=sampling.schedule,
        rule=sampling.rule,
        steps=train if sampling.rule == "ddpm" else min(_IMPLICIT_STEPS, train),
        rules=further,
        schedules=sampling.schedules(further),
        finish=(COLOUR,) if grey else (),
        multiple=multiple,
    )


def _checks(unet: Any, pipeline: Pipeline, classes: int, limit: float) -> tuple[Check, ...]:
    def pictures(folder: Path) -> Iterator[Measurement]:
        label = {"label": classes - 1} if classes else {}
        found = load("generate", folder)(seed=_SEED, steps=_STEPS, **label)
        expected = reference_picture(unet, pipeline, label.get("label"), _STEPS, _SEED)
        yield picture_checks.measure_picture("picture.generate", found.pixels, expected, limit)

    return (pictures,)


def reference_picture(unet: Any, pipeline: Pipeline, label: int | None, steps: int, seed: int) -> NDArray[np.uint8]:
    """Diffusers' picture, uint8 [H, W, 3]; with a class its loop written out, for its pipelines take none."""
    import diffusers

    component = pipeline["scheduler"]
    scheduler = getattr(diffusers, component.kind).from_config(dict(component.config))
    generator = torch.Generator().manual_seed(seed)
    if label is None:
        implicit = component.kind == "DDIMScheduler"
        made = (diffusers.DDIMPipeline if implicit else diffusers.DDPMPipeline)(unet, scheduler)
        made.set_progress_bar_config(disable=True)
        picture = made(generator=generator, num_inference_steps=steps).images[0]
        return np.asarray(picture.convert("RGB"), dtype=np.uint8)
    size = unet.config.sample_size
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    sample = torch.randn(1, _channels(unet), *sides, generator=generator)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            predicted = unet(sample, timestep, class_labels=torch.tensor([label])).sample
            sample = scheduler.step(predicted, timestep, sample, generator=generator).prev_sample
    values = (sample[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3).numpy()
    return np.asarray((values * 255).round(), dtype=np.uint8)
