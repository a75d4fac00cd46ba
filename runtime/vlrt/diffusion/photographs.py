"""Photographs and masks as the stages take them."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt import image as pictures
from vlrt.errors import ImageError, VlrtWarning
from vlrt.image import ImageLike

Array = NDArray[np.float32]


class MaskWarning(VlrtWarning):
    """A mask had greys, which were taken as black or white."""


class SizeWarning(VlrtWarning):
    """A photograph was resized to a size that the model can do."""


def pixels(picture: Image.Image, size: tuple[int, int], resample: str = "lanczos") -> Array:
    """A photograph resized and scaled to −1 to 1: float32 [1, 3, H, W].

    Args:
        size: height and width.

    Source: diffusers' ``VaeImageProcessor.preprocess``.
    """
    resized = picture.resize(size[::-1], pictures.FILTERS[resample])
    values = np.asarray(resized, dtype=np.uint8).astype(np.float32) / np.float32(255)
    return np.ascontiguousarray((2 * values - 1).transpose(2, 0, 1)[None])


def mask_of(source: ImageLike, photograph: Image.Image, size: tuple[int, int]) -> Array:
    """A mask, white where it is to be painted, as zeros and ones: float32 [1, 1, H, W].

    Args:
        photograph: whose size the mask must have.
        size: height and width that the photograph is resized to; the mask with it.

    Raises:
        ImageError: it cannot be read, or is of another size than the photograph.

    Source: diffusers' ``VaeImageProcessor`` with ``do_binarize`` and ``do_convert_grayscale``.
    """
    mask = pictures.load(source).convert("L")
    if mask.size != photograph.size:
        sides = (f"{picture.width}x{picture.height}" for picture in (mask, photograph))
        what = "the mask has {} pixels, the photograph {}".format(*sides)
        raise ImageError(what, "they must be of one size; resize the mask")
    greys = np.asarray(mask)
    between = int(((greys > 0) & (greys < 255)).sum())
    if between:
        what = f"{between:,} pixels of the mask are neither black nor white; lighter than half grey counts as white"
        warnings.warn(what, MaskWarning, stacklevel=2)
    resized = np.asarray(mask.resize(size[::-1], Image.Resampling.LANCZOS), dtype=np.uint8)
    return np.ascontiguousarray((resized.astype(np.float32) / np.float32(255) >= 0.5).astype(np.float32)[None, None])


def to_picture(array: Array) -> Image.Image:
    """A finished picture [3, H, W] in −1 to 1 as 8-bit RGB.

    Source: diffusers' ``VaeImageProcessor.postprocess``.
    """
    values = (array.astype(np.float32) / 2 + np.float32(0.5)).clip(0, 1)
    return Image.fromarray(np.rint(values.transpose(1, 2, 0) * 255).astype(np.uint8))


def fitted(picture: Image.Image, size: tuple[int, int]) -> tuple[int, int]:
    """The size a photograph is resized to, and a warning where that is not its own."""
    if picture.size != size[::-1]:
        what = f"the photograph of {picture.width}x{picture.height} pixels was resized to {size[1]}x{size[0]}"
        warnings.warn(f"{what}, which the model can do", SizeWarning, stacklevel=3)
    return size
