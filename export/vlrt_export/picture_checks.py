"""Rung 4 of the ladder: pictures of the same seed, beside the reference pipeline's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt.manifest import Measurement
from vlrt_export.image_checks import noise_picture

LEAST = 50.0
"""Decibels that the peak signal-to-noise ratio of two pictures must reach."""

_EQUAL = 100.0
"""What equal pictures are given: the ratio itself has no bound."""


def psnr(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two pictures [H, W, 3] in decibels; 100 for equal ones, 0 for other shapes."""
    if found.shape != expected.shape:
        return 0.0
    error = float(np.mean((found.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return min(_EQUAL, 10 * float(np.log10(255.0**2 / error))) if error else _EQUAL


def measure_picture(stage: str, found: NDArray[np.uint8], expected: Any, limit: float = LEAST) -> Measurement:
    """One picture against diffusers'.

    Args:
        stage: what the certificate calls it.
        expected: Pillow image, or array [H, W, 3] of uint8.
    """
    import diffusers

    value = psnr(found, np.asarray(expected, dtype=np.uint8))
    return Measurement(stage, "PSNR in dB", value, limit, "diffusers", diffusers.__version__, better="higher")


def photograph(height: int, width: int) -> Image.Image:
    """A picture of coarse coloured noise to start from."""
    return noise_picture(width, height)


def mask(height: int, width: int) -> Image.Image:
    """A mask with a white rectangle off its middle."""
    made = Image.new("L", (width, height))
    made.paste(255, (width // 4, height // 8, width * 3 // 4, height * 5 // 8))
    return made
