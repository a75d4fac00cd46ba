"""Diffusers on torch, eager, in fp32: the pipeline that a checkpoint's folder names, loaded as a user would load it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlrt.benchmark_job import Job, Point, Runner, SkippedError, picture_numbers
from vlrt.bundle import Bundle


class Painting:
    """Pictures from a prompt or from noise, with the bundle's default guidance."""

    libraries: Sequence[str] = ("torch", "diffusers", "transformers", "Pillow")
    note = "fp32, torch eager"

    def __init__(self, job: Job, pipeline: Any, guidance: float) -> None:
        self.job, self.pipeline = job, pipeline
        takes = inspect.signature(type(pipeline).__call__).parameters
        given = {"prompt": job.prompt, "guidance_scale": guidance, "num_inference_steps": job.steps}
        self.options = {name: value for name, value in given.items() if name in takes}

    def run(self, point: Point) -> list[Any]:
        """Evenly spaced numbers of the first picture, in −1 to 1."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(point.batch)]
        count = "num_images_per_prompt" if "prompt" in self.options else "batch_size"
        found = self.pipeline(**self.options, **{count: point.batch}, generator=generators, output_type="np").images
        pixels = (found[0] * 255).round().astype("uint8")
        return picture_numbers(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


def prepare(job: Job) -> None:
    """The source must be a folder that diffusers reads."""
    if job.task != "generate":
        raise SkippedError(f"the task `{job.task}` is not compared with it")
    if not (Path(job.source) / "model_index.json").is_file():
        raise SkippedError("it needs the weights in diffusers' layout: --source FOLDER with its model_index.json")


def load(job: Job) -> Runner:
    """The pipeline in memory."""
    from diffusers import DiffusionPipeline

    torch.set_num_threads(job.threads)
    pipeline = DiffusionPipeline.from_pretrained(job.source, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    spec = Bundle.open(Path(job.folder)).manifest.diffusion
    return Painting(job, pipeline, spec.stages[0].guidance if spec else 1.0)
