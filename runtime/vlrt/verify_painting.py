"""Goldens of bundles that paint: every stage's sample after two steps, and the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.diffusion.prompt_cache import PromptCache
from vlrt.diffusion.request import PaintStep
from vlrt.diffusion.sizes import Sizes
from vlrt.diffusion.task import PaintingTask
from vlrt.diffusion_sections import DiffusionSpec
from vlrt.engines import EngineOptions, Sessions
from vlrt.errors import BundleError
from vlrt.tasks import TASKS, task_class

SEED, STEPS = 7, 2
_ORDER = ("generate", "inpaint", "upscale", "variations", "edit")
"""The first of these that a bundle serves is what its goldens are made with."""


def paint_goldens(
    bundle: Bundle,
    options: EngineOptions,
    prompt: str,
    photograph: Image.Image,
    *,
    sessions: Sessions | None = None,
    seed: int = SEED,
    most_steps: int = STEPS,
) -> dict[str, NDArray[Any]]:
    """What a bundle paints in two steps from a fixed seed: each stage's sample, and the picture [H, W, 3].

    Args:
        prompt: for bundles that read one.
        photograph: for tasks that start from one.
        sessions: of the bundle's graphs, where others than its own are to be judged.
        seed, most_steps: other than those of goldens.

    Raises:
        BundleError: the bundle serves no task that paints.
    """
    spec = bundle.manifest.diffusion
    task = next((name for name in _ORDER if name in bundle.manifest.tasks and name in TASKS), None)
    if spec is None or task is None:
        raise BundleError(f"the bundle `{bundle.name}` paints nothing")
    painter: Any = task_class(task, bundle)(bundle, options)
    painter.cascade.prompts.cache = PromptCache(keeps=False)  # what was computed before proves nothing
    if sessions is not None:
        painter.cascade.sessions = painter.cascade.prompts.sessions = sessions
    samples: dict[str, NDArray[Any]] = {}

    def on_step(step: PaintStep) -> None:
        samples[f"stage.{step.stage}"] = step.sample.copy()

    given = _given(task, painter, prompt if spec.prompts else "", photograph)
    few = {
        stage.name: min(most_steps, stage.schedule.train_steps)
        for stage in painter.cascade.stages_from(_first(task, spec))
    }
    label = {"label": 0} if spec.label_input else {}
    (painting,) = painter.batch(*given, seed=seed, steps=few, on_step=on_step, **_size(task, spec), **label)
    return {**samples, "picture": painting.pixels}


def _given(task: str, painter: PaintingTask, prompt: str, photograph: Image.Image) -> tuple[Any, ...]:
    side = 64
    if task == "upscale":
        stages = painter.cascade.stages_from(painter.spec.upscale_start)
        place = painter.spec.stages.index(stages[0])
        sizes = Sizes.of_source(stages, painter.spec.stages[place - 1] if place else None, painter.spec.max_size)
        fitted = sizes.fit(side, side)
        return photograph.resize(fitted[::-1]), prompt
    if task in ("inpaint", "edit"):
        size = _size(task, painter.spec)
        small = photograph.resize((size["width"], size["height"]))
        half = np.zeros((small.height, small.width), np.uint8)
        half[:, : small.width // 2] = 255
        return (small, Image.fromarray(half), prompt) if task == "inpaint" else (small, prompt)
    return (photograph,) if task == "variations" else (prompt,)


def _first(task: str, spec: DiffusionSpec) -> str:
    return {"upscale": spec.upscale_start, "variations": spec.variation_start}.get(task, "")


def _size(task: str, spec: DiffusionSpec) -> dict[str, int]:
    """A quarter of the default size, where the model can do that: goldens are to be quick."""
    if task == "upscale":
        return {}
    names = [stage.name for stage in spec.stages]
    first = _first(task, spec)
    sizes = Sizes.of_result(spec.stages[names.index(first) if first else 0 :], spec.max_size)
    height, width = sizes.fit(sizes.reference[0] // 4, sizes.reference[1] // 4)
    return {"height": height, "width": width}
