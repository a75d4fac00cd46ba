"""The ladder's first rung: pixels against transformers' image processors, on pictures made of noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from vlrt import image as pictures
from vlrt.manifest import ImageSpec, Measurement
from vlrt_export.parity import difference

SIZES = ((200, 150), (333, 227), (225, 224), (97, 401), (64, 64))
"""Widths and heights of the pictures; odd margins and both orientations."""

FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def noise_picture(width: int, height: int) -> Image.Image:
    """A picture of coarse coloured noise, the same on every machine."""
    generator = np.random.default_rng(width * 1000 + height)
    coarse = generator.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def measure_pixels(spec: ImageSpec, limit: float, processor: str, **more: Any) -> Measurement:
    """Pixels of a stretching image section against the processor of that class.

    Args:
        spec: with resize ``stretch``.
        processor: name of transformers' class.
        more: further arguments of it.
    """
    import transformers

    made = getattr(transformers, processor)(
        size=dict(zip(("height", "width"), spec.stretched or spec.size)),
        resample=FILTERS[spec.interpolation],
        rescale_factor=spec.scale,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
        **more,
    )
    photographs = [noise_picture(*size) for size in SIZES]
    expected = made(photographs, return_tensors="np")["pixel_values"]
    gap = difference(pictures.preprocess(photographs, spec), expected)
    ending = (float(gap), limit, f"transformers {processor}", transformers.__version__)
    return Measurement("pixels", f"max abs error over {len(SIZES)} pictures", *ending)
