"""Inpainting: a photograph, a mask and words in, the photograph with the masked part painted anew out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlrt.diffusion.cascade import Job
from vlrt.diffusion.photographs import mask_of
from vlrt.diffusion.sizes import Sizes
from vlrt.diffusion.sources import keep
from vlrt.diffusion.task import PaintingTask, load_photograph, named
from vlrt.errors import BundleError
from vlrt.image import ImageLike
from vlrt.picture_file import Painting


class Inpainter(PaintingTask):
    """Paints the masked part of photographs anew.

    Args:
        bundle: one that serves ``inpaint``.
        options: device and threads.
        keep_loaded: keeps every graph in memory between calls and stages.
    """

    task = "inpaint"

    def __call__(self, photograph: ImageLike, mask: ImageLike, prompt: str = "", **options: Any) -> Painting:
        """One picture.

        Args:
            photograph: path, bytes, Pillow image or array.
            mask: of the photograph's size; white is painted anew, black kept.
            prompt: what the picture shows.
            options: as `vlrt.tasks.generate.Painter` takes them; `strength` is 1 where nothing else is said.

        Raises:
            ImageError: not a readable image, or a mask of another size.
            UsageError: an option that cannot be meant.
        """
        return self.batch(photograph, mask, prompt, **{**options, "count": 1})[0]

    def batch(self, photograph: ImageLike, mask: ImageLike, prompt: str = "", **options: Any) -> list[Painting]:
        """As calling, `count` pictures with seeds one after the other.

        Source: diffusers' ``StableDiffusionInpaintPipeline``; GLIDE's inpainting notebook.
        """
        request, hooks = self.request(options, prompt)
        first = self.spec.stages[0]
        strength = 1.0 if request.strength is None else request.strength
        if first.name not in self.spec.inpaint:
            raise BundleError(f"the stage `{first.name}` keeps no part of a picture", "export the bundle again")
        self.walked(first, request, strength)
        loaded = load_photograph(photograph)
        sizes = Sizes.of_result(self.spec.stages, self.spec.max_size)
        size = self.photograph_size(loaded, sizes, request)
        painted = mask_of(mask, loaded, size)
        shapes = sizes.shapes(*size)
        encode = self.cascade.encoder(request, *shapes[first.name][1:])
        source = keep(loaded, painted, self.spec.stages, shapes, encode)
        self.cascade.release(self.spec.encode)
        parameters = {"strength": strength, **named(photograph), **named(mask, "mask")}
        job = Job(self.task, shapes, prompt, source=replace(source, strength=strength), parameters=parameters)
        return self.paint(job, request, hooks)
