"""What the painting tasks share: a cascade, its sizes, and how calls become requests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from PIL import Image

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.diffusion.cascade import Cascade, Job
from vlrt.diffusion.photographs import fitted
from vlrt.diffusion.request import Choices, PaintHooks, PaintRequest
from vlrt.diffusion.sizes import Sizes
from vlrt.diffusion_sections import StageSpec
from vlrt.engines import EngineOptions
from vlrt.errors import UsageError
from vlrt.image import ImageLike
from vlrt.picture_file import Painting

_HOOKS = ("on_step", "should_cancel")


class PaintingTask:
    """A task that a bundle's diffusion section serves.

    Args:
        bundle: one that serves the task.
        options: device and threads.
        keep_loaded: keeps every graph in memory between calls and stages, as servers want it.

    Raises:
        BundleError: the bundle does not serve the task.
    """

    task = ""

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None, keep_loaded: bool = False) -> None:
        bundle.require(self.task)
        self.bundle = bundle
        self.cascade = Cascade(bundle, options, keep_loaded)
        self.spec = self.cascade.spec

    def request(self, options: Mapping[str, Any], prompt: str = "") -> tuple[PaintRequest, PaintHooks]:
        """Checked options of a call, and its hooks.

        Raises:
            UsageError: an option that is unknown or cannot be meant, or a prompt for a bundle that reads none.
        """
        hooks = PaintHooks(**{name: options[name] for name in _HOOKS if name in options})
        request = PaintRequest.of({name: value for name, value in options.items() if name not in _HOOKS})
        if (prompt or request.negative) and not self.spec.prompts:
            raise UsageError(f"the bundle `{self.bundle.name}` reads no prompt", "leave it out")
        if request.label is not None and not self.spec.label_input:
            raise UsageError(f"the bundle `{self.bundle.name}` knows no classes", "leave `--label` out")
        return request, hooks

    def paint(self, job: Job, request: PaintRequest, hooks: PaintHooks) -> list[Painting]:
        """Makes the pictures of a job; see `Cascade.paint`."""
        return self.cascade.paint(job, request, hooks)

    def result_size(self, sizes: Sizes, request: PaintRequest) -> tuple[int, int]:
        """Height and width of the finished picture: as asked, else the default."""
        return sizes.check(request.height or sizes.reference[0], request.width or sizes.reference[1])

    def photograph_size(self, photograph: Image.Image, sizes: Sizes, request: PaintRequest) -> tuple[int, int]:
        """Height and width that a photograph is resized to: as asked, else its own, rounded down; a change is said."""
        if request.height or request.width:
            return sizes.check(request.height or photograph.height, request.width or photograph.width)
        return fitted(photograph, sizes.fit(photograph.height, photograph.width))

    def walked(self, stage: StageSpec, request: PaintRequest, strength: float) -> None:
        """Refuses a strength that leaves no step to do."""
        steps = Choices.of(request, [*self.spec.stages]).stages[stage.name].steps
        if int(steps * strength) < 1:
            what = f"a strength of {strength} leaves none of the {steps} steps to do"
            raise UsageError(what, f"at least {1 / steps:.2g}, or more steps")


def load_photograph(source: ImageLike) -> Image.Image:
    """The photograph as 8-bit RGB; see `vlrt.image.load`."""
    return pictures.load(source)


def named(source: ImageLike, what: str = "photograph") -> dict[str, str]:
    """How the parameters name a photograph; nothing where it was no file."""
    return {what: os.fspath(source)} if isinstance(source, (str, os.PathLike)) else {}
