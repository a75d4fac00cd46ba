"""Upscaling: a small photograph, and words where the model reads them, in; a larger one out."""

from __future__ import annotations

from typing import Any

from vlrt.diffusion.cascade import Job
from vlrt.diffusion.photographs import pixels
from vlrt.diffusion.sizes import Sizes
from vlrt.diffusion.task import PaintingTask, load_photograph, named
from vlrt.errors import BundleError, UsageError
from vlrt.image import ImageLike
from vlrt.picture_file import Painting


class Upscaler(PaintingTask):
    """Enlarges photographs with the super-resolution stages of a bundle.

    Args:
        bundle: one that serves ``upscale``.
        options: device and threads.
        keep_loaded: keeps every graph in memory between calls and stages.
    """

    task = "upscale"

    def __call__(self, photograph: ImageLike, prompt: str = "", **options: Any) -> Painting:
        """One picture.

        Args:
            photograph: path, bytes, Pillow image or array; resized to the nearest smaller size the model can do.
            prompt: what the picture shows.
            options: as `vlrt.tasks.generate.Painter` takes them, without a size.

        Raises:
            ImageError: not a readable image.
            UsageError: an option that cannot be meant.
        """
        return self.batch(photograph, prompt, **{**options, "count": 1})[0]

    def batch(self, photograph: ImageLike, prompt: str = "", **options: Any) -> list[Painting]:
        """As calling, `count` pictures with seeds one after the other.

        Source: diffusers' ``StableDiffusionUpscalePipeline``, ``IFSuperResolutionPipeline``.
        """
        request, hooks = self.request(options, prompt)
        if request.height or request.width:
            raise UsageError("the size of an enlarged picture follows from the photograph's", "leave the size out")
        stages = self.cascade.stages_from(self.spec.upscale_start)
        low = stages[0].low_resolution
        if low is None:
            raise BundleError(f"the stage `{stages[0].name}` takes no picture to enlarge", "export the bundle again")
        place = self.spec.stages.index(stages[0])
        before = self.spec.stages[place - 1] if place else None
        sizes = Sizes.of_source(stages, before, self.spec.max_size)
        loaded = load_photograph(photograph)
        size = self.photograph_size(loaded, sizes, request)
        arrays = [{low.source: pixels(loaded, size, "bicubic")}]
        job = Job(self.task, sizes.shapes(*size), prompt, arrays, parameters=named(photograph))
        return self.paint(job, request, hooks)
