"""What a photograph gives to the stages: where they start from, and what a mask keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt.diffusion.photographs import pixels
from vlrt.diffusion.resize import nearest
from vlrt.diffusion.tiles import Tiling
from vlrt.diffusion_sections import DiffusionSpec, InpaintSpec, StageSpec
from vlrt.engines import Sessions

Array = NDArray[np.float32]
Draw = Callable[[tuple[int, ...]], Array]
"""Standard normals of a shape, from the picture's own generator."""

_SMALLEST_DEVIATION = np.float32(1e-20)


@dataclass(frozen=True)
class Posterior:
    """What an autoencoder says of a picture's latents, or a picture that is its own sample.

    Args:
        mean: [1, C, h, w].
        deviation: of the same shape; `None` where nothing is drawn.
        scale: what a drawn latent is multiplied with.
    """

    mean: Array
    deviation: Array | None = None
    scale: float = 1.0

    def draw(self, normals: Draw) -> Array:
        """One sample: [1, C, h, w].

        Source: diffusers' ``DiagonalGaussianDistribution.sample``.
        """
        if self.deviation is None:
            return self.mean
        return (self.mean + self.deviation * normals(self.mean.shape)) * np.float32(self.scale)


@dataclass(frozen=True)
class Kept:
    """What inpainting keeps in one stage.

    Args:
        mask: [1, 1, h, w] at the sample's size, 1 where it is to be painted.
        masked: the picture without what is to be painted, in the stage's own space.
    """

    spec: InpaintSpec
    mask: Array
    masked: Posterior


@dataclass(frozen=True)
class Source:
    """A photograph in each stage that uses it, by stage name.

    Args:
        pictures: what stages start from, or keep.
        kept: of stages that inpaint.
        strength: share of the steps that are walked; 1 starts from noise where a mask says what is kept.
    """

    pictures: dict[str, Posterior] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)
    strength: float = 1.0


class Encoder:
    """Turns pictures into what a stage's sample is made of.

    Args:
        tiled: whether large pictures are encoded in tiles.
    """

    def __init__(self, spec: DiffusionSpec, sessions: Sessions, tiled: bool) -> None:
        self.spec, self.sessions, self.tiled = spec, sessions, tiled

    def __call__(self, picture: Array) -> Posterior:
        """The posterior of a picture [1, 3, H, W] in −1 to 1."""
        if not self.spec.encode:
            return Posterior(picture)
        stage = self.spec.stages[0]
        if not (self.tiled and stage.tile and max(picture.shape[2:]) > stage.tile * stage.factor):
            return Posterior(*self._moments(picture), self.spec.encode_scale)
        tiling = Tiling(stage.tile * stage.factor, stage.tile, stage.tile_overlap)
        # The reference blends means and logarithms of variances.
        moments = tiling.run(self._logarithmic, picture)
        mean, log_variance = np.split(moments, 2, axis=1)
        return Posterior(mean, np.exp(log_variance / 2), self.spec.encode_scale)

    def _moments(self, picture: Array) -> tuple[Array, Array]:
        found = self.sessions.run_chain(self.spec.encode, {"picture": picture})
        return found["latent_mean"], found["latent_std"]

    def _logarithmic(self, picture: Array) -> Array:
        mean, deviation = self._moments(picture)
        return np.concatenate([mean, 2 * np.log(np.maximum(deviation, _SMALLEST_DEVIATION))], axis=1)


def start_from(photograph: Image.Image, stage: StageSpec, size: tuple[int, int], encode: Encoder) -> Source:
    """A source for a stage that starts from a photograph of `size` (height, width)."""
    return Source({stage.name: encode(pixels(photograph, size))})


def keep(
    photograph: Image.Image,
    mask: Array,
    stages: Sequence[StageSpec],
    shapes: dict[str, tuple[int, ...]],
    encode: Encoder,
) -> Source:
    """A source for stages that inpaint.

    Args:
        mask: [1, 1, H, W], 1 where it is to be painted, at the size that the first stage's picture has.
        shapes: of each stage's sample.

    Source: diffusers' ``StableDiffusionInpaintPipeline``; for stages that replace, GLIDE's inpainting notebook.
    """
    pictures: dict[str, Posterior] = {}
    kept: dict[str, Kept] = {}
    first: Array | None = None
    for stage in stages:
        spec = encode.spec.inpaint.get(stage.name)
        if spec is None:
            continue
        rows, columns = shapes[stage.name][1:]
        size = (rows * stage.factor, columns * stage.factor)
        replaces = spec.kind == "replace"
        picture = pixels(photograph, size, "bicubic" if replaces else "lanczos")
        first = nearest(mask, (rows, columns)) if first is None else first
        small = nearest(first, (rows, columns))
        covered = nearest(small, size) if replaces else mask
        masked = picture * (covered < 0.5)
        pictures[stage.name] = encode(picture) if stage.factor > 1 else Posterior(picture)
        kept[stage.name] = Kept(spec, small, encode(masked) if stage.factor > 1 else Posterior(masked))
    return Source(pictures, kept)
