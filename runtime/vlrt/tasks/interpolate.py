"""Interpolation: two photographs in, pictures on the way from one to the other out."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlrt import image as pictures
from vlrt.diffusion.cascade import Job
from vlrt.diffusion.embeddings import slerp
from vlrt.diffusion.sizes import Sizes
from vlrt.diffusion.task import PaintingTask, load_photograph, named
from vlrt.errors import BundleError, UsageError
from vlrt.image import ImageLike
from vlrt.picture_file import Painting


class Interpolator(PaintingTask):
    """Paints what lies between the embeddings of two photographs.

    Args:
        bundle: one that serves ``interpolate``.
        options: device and threads.
        keep_loaded: keeps every graph in memory between calls and stages.
    """

    task = "interpolate"

    def __call__(self, first: ImageLike, last: ImageLike, *, frames: int = 8, **options: Any) -> list[Painting]:
        """Pictures at equal angles from the first photograph's embedding to the last one's, both ends included.

        All of them start from the same noise, so that nothing but the embedding changes.

        Args:
            first, last: path, bytes, Pillow image or array.
            frames: pictures, 2 or more.
            options: as `vlrt.tasks.generate.Painter` takes them, `prompt` too, without `count`.

        Raises:
            ImageError: not a readable image.
            UsageError: an option that cannot be meant.

        Source: Ramesh et al. 2022 (arXiv 2204.06125), section 3.2.
        """
        prompt = str(options.pop("prompt", ""))
        if "count" in options or not 2 <= frames <= 1024:
            raise UsageError(f"`frames` is {frames}, expected 2 to 1024, and no `count`", "--frames 8")
        request, hooks = self.request({**options, "count": frames}, prompt)
        if self.spec.image is None:
            raise BundleError(f"the bundle `{self.bundle.name}` has no image encoder", "choose another with `--model`")
        stages = self.cascade.stages_from(self.spec.variation_start)
        sizes = Sizes.of_result(stages, self.spec.max_size)
        shapes = sizes.shapes(*self.result_size(sizes, request))
        loaded = [load_photograph(photograph) for photograph in (first, last)]
        ends = self.cascade.embed(pictures.preprocess(loaded, self.spec.image))
        name = self.spec.embedding
        between = [{name: slerp(ends[:1], ends[1:], float(share))} for share in np.linspace(0, 1, frames)]
        parameters = {"frames": frames, **named(first), **named(last, "other")}
        job = Job(self.task, shapes, prompt, between, parameters=parameters, one_seed=True)
        return self.paint(job, request, hooks)
