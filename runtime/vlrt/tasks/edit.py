"""Editing: a photograph and words in, the photograph as the words say out (Meng et al. 2022, SDEdit)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlrt.diffusion.cascade import Job
from vlrt.diffusion.sizes import Sizes
from vlrt.diffusion.sources import start_from
from vlrt.diffusion.task import PaintingTask, load_photograph, named
from vlrt.errors import BundleError
from vlrt.image import ImageLike
from vlrt.picture_file import Painting


class Editor(PaintingTask):
    """Paints over photographs: noise is added to them, and taken away as the prompt says.

    Args:
        bundle: one that serves ``edit``.
        options: device and threads.
        keep_loaded: keeps every graph in memory between calls and stages.
    """

    task = "edit"

    def __call__(self, photograph: ImageLike, prompt: str = "", **options: Any) -> Painting:
        """One picture.

        Args:
            photograph: path, bytes, Pillow image or array; resized to the nearest smaller size the model can do.
            prompt: what the picture shows.
            options: as `vlrt.tasks.generate.Painter` takes them; `strength` says how much is painted anew.

        Raises:
            ImageError: not a readable image.
            UsageError: an option that cannot be meant.
        """
        return self.batch(photograph, prompt, **{**options, "count": 1})[0]

    def batch(self, photograph: ImageLike, prompt: str = "", **options: Any) -> list[Painting]:
        """As calling, `count` pictures with seeds one after the other.

        Source: diffusers' ``StableDiffusionImg2ImgPipeline``.
        """
        request, hooks = self.request(options, prompt)
        first = self.spec.stages[0]
        strength = self.spec.edit_strength if request.strength is None else request.strength
        if len(first.shape) == 1:
            raise BundleError(f"the stage `{first.name}` starts from no picture", "export the bundle again")
        self.walked(first, request, strength)
        loaded = load_photograph(photograph)
        sizes = Sizes.of_result(self.spec.stages, self.spec.max_size)
        size = self.photograph_size(loaded, sizes, request)
        shapes = sizes.shapes(*size)
        rows, columns = shapes[first.name][1:]
        encode = self.cascade.encoder(request, rows, columns)
        source = start_from(loaded, first, (rows * first.factor, columns * first.factor), encode)
        self.cascade.release(self.spec.encode)
        parameters = {"strength": strength, **named(photograph)}
        job = Job(self.task, shapes, prompt, source=replace(source, strength=strength), parameters=parameters)
        return self.paint(job, request, hooks)
