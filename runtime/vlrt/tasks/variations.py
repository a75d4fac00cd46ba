"""Variations: a photograph in, pictures of the same out; or of the same, moved by a difference of two sentences."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlrt import image as pictures
from vlrt.diffusion.cascade import Job
from vlrt.diffusion.embeddings import difference, slerp
from vlrt.diffusion.sizes import Sizes
from vlrt.diffusion.task import PaintingTask, load_photograph, named
from vlrt.engines import Array
from vlrt.errors import BundleError, UsageError
from vlrt.image import ImageLike
from vlrt.picture_file import Painting


class Varier(PaintingTask):
    """Paints what a photograph's embedding says.

    Args:
        bundle: one that serves ``variations``.
        options: device and threads.
        keep_loaded: keeps every graph in memory between calls and stages.
    """

    task = "variations"

    def __call__(self, photograph: ImageLike, **options: Any) -> Painting:
        """One picture.

        Args:
            photograph: path, bytes, Pillow image or array.
            options: as `batch` takes them.

        Raises:
            ImageError: not a readable image.
            UsageError: an option that cannot be meant.
        """
        return self.batch(photograph, **{**options, "count": 1})[0]

    def batch(
        self, photograph: ImageLike, *, source: str = "", target: str = "", theta: float = 0.25, **options: Any
    ) -> list[Painting]:
        """`count` pictures with seeds one after the other.

        Args:
            source, target: two sentences; the photograph's embedding is turned towards their difference.
            theta: how far, 0 to 1.
            options: as `vlrt.tasks.generate.Painter` takes them, `prompt` too.

        Source: Ramesh et al. 2022 (arXiv 2204.06125), sections 3.1, 3.3; diffusers' ``UnCLIPImageVariationPipeline``.
        """
        prompt = str(options.pop("prompt", ""))
        request, hooks = self.request(options, prompt)
        if bool(source) != bool(target):
            raise UsageError("a difference needs two sentences", '--from "a dog" --to "a cat"')
        if not 0 <= theta <= 1:
            raise UsageError(f"`theta` is {theta}, expected 0 to 1", "0 is the photograph, 1 the difference alone")
        stages = self.cascade.stages_from(self.spec.variation_start)
        sizes = Sizes.of_result(stages, self.spec.max_size)
        shapes = sizes.shapes(*self.result_size(sizes, request))
        embedding = self._embed(photograph)
        parameters: dict[str, Any] = named(photograph)
        if source:
            embedding = slerp(embedding, self._towards(embedding, source, target), theta)
            parameters |= {"from": source, "to": target, "theta": theta}
        job = Job(self.task, shapes, prompt, [{self.spec.embedding: embedding}], parameters=parameters)
        return self.paint(job, request, hooks)

    def _embed(self, photograph: ImageLike) -> Array:
        if self.spec.image is None:
            raise BundleError(f"the bundle `{self.bundle.name}` has no image encoder", "choose another with `--model`")
        return self.cascade.embed(pictures.preprocess([load_photograph(photograph)], self.spec.image))

    def _towards(self, embedding: Array, source: str, target: str) -> Array:
        before, after = self.cascade.prompts.encode([source, target])
        name = self.spec.text_embedding
        if name not in before:
            raise BundleError(f"the bundle `{self.bundle.name}` gives no `{name}`", "choose another with `--model`")
        return difference(before[name], after[name], float(np.linalg.norm(embedding)))
