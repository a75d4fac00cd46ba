"""Generating: words, a class or nothing in, pictures out."""

from __future__ import annotations

from typing import Any

from vlrt.diffusion.cascade import Job
from vlrt.diffusion.sizes import Sizes
from vlrt.diffusion.task import PaintingTask
from vlrt.picture_file import Painting


class Painter(PaintingTask):
    """Paints pictures by diffusion, from words, a class or noise alone.

    Args:
        bundle: one that serves ``generate`` and has a diffusion section.
        options: device and threads.
        keep_loaded: keeps every graph in memory between calls and stages.
    """

    task = "generate"

    def __call__(self, prompt: str = "", **options: Any) -> Painting:
        """One picture.

        Args:
            prompt: what it shows; may be empty.
            options: fields of `vlrt.diffusion.request.PaintRequest`, e.g. ``seed=1, steps=20``, and of
                `vlrt.diffusion.request.PaintHooks`.

        Raises:
            UsageError: an option that cannot be meant.
            EngineError: values that are not finite; stage and step are named.
        """
        return self.batch(prompt, **{**options, "count": 1})[0]

    def batch(self, prompt: str = "", **options: Any) -> list[Painting]:
        """As calling, `count` pictures with seeds one after the other."""
        request, hooks = self.request(options, prompt)
        sizes = Sizes.of_result(self.spec.stages, self.spec.max_size)
        shapes = sizes.shapes(*self.result_size(sizes, request))
        return self.paint(Job(self.task, shapes, prompt), request, hooks)
