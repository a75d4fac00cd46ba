"""Reconstructing: what is left of a photograph after it was codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.codec import PictureCodec, as_pictures
from vlrt.engines import EngineOptions
from vlrt.image import ImageLike
from vlrt.token_grid import TokenGrid


@dataclass(frozen=True)
class Reconstruction:
    """A photograph and what its codes give.

    Args:
        original: the photograph as the codec saw it, RGB.
        picture: the reconstruction, of the same size.
        grid: the codes between them.
        mse: mean squared error of the pixels in [0, 1].
    """

    original: Image.Image
    picture: Image.Image
    grid: TokenGrid
    mse: float

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in decibels; infinite for equal pictures."""
        return -10 * math.log10(self.mse) if self.mse else math.inf


class Reconstructor:
    """Turns photographs into codes and back with a bundle's codec.

    Args:
        bundle: one that serves ``reconstruct``.
        options: device and threads.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require("reconstruct")
        self.codec = PictureCodec(bundle, options)
        self.codec.prepare()

    def __call__(self, photograph: ImageLike, size: tuple[int, int] | None = None) -> Reconstruction:
        """The photograph's reconstruction.

        Args:
            size: as of `vlrt.codec.PictureCodec.fit`.

        Raises:
            ImageError: not a readable image, or one smaller than a code.
            UsageError: a size that is no whole number of codes.
        """
        spec = self.codec.spec
        original = self.codec.fit(pictures.load(photograph), size)
        codes = self.codec.encode([original])
        painted = self.codec.decode(codes)
        gap = painted.astype(np.float64) - self.codec.pixels([original])
        grid = TokenGrid(codes[0], spec.codebook, spec.factor, self.codec.bundle.name)
        return Reconstruction(original, as_pictures(painted)[0], grid, float(np.square(gap).mean()))
