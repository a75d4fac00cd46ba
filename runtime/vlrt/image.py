"""Photographs: reading anything that is one, and the pixels a model wants."""

from __future__ import annotations

import io
import logging
import math
import os
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vlrt.errors import ImageError
from vlrt.manifest import ImageSpec

ImageLike = Union[str, "os.PathLike[str]", bytes, Image.Image, NDArray[Any]]
"""A path, an encoded file's bytes, a Pillow image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
"""File name endings taken as photographs when a folder is searched."""

MOST_PIXELS = 178_956_970
"""Width times height beyond which a file is refused before it is decoded; where Pillow too raises an error."""

_COMMON = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM")
_FURTHER = ("TIFF", "JPEG2000", "AVIF", "MPO")
"""Formats that are read. Pillow knows forty more, some of them programs (EPS runs Ghostscript), all of them rare."""

# What Pillow finds wrong with a file it logs before it raises; without a handler that would go to the terminal.
logging.getLogger("PIL").addHandler(logging.NullHandler())

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's filters by the names that manifests use."""


def load(source: ImageLike) -> Image.Image:
    """Reads a photograph as 8-bit RGB, turned as its EXIF orientation says; of an animation, the first frame.

    Transparency is dropped, as in the reference implementations' ``convert("RGB")``. Sixteen-bit and floating greys
    are scaled to eight bits. Arrays are uint8 (0-255) or floating (0-1).

    Raises:
        ImageError: not an image, empty, truncated, too large, or an array of another shape or type.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        try:
            return _to_rgb(source)
        except (OSError, SyntaxError, ValueError) as error:  # a lazily opened file may turn out damaged only now
            raise ImageError(f"the Pillow image cannot be read: {_reason(error)}") from None
    name, stream = _open(source)
    with warnings.catch_warnings():
        # Our own limit below replaces Pillow's warning; odd metadata is no reason to trouble the user.
        warnings.simplefilter("ignore")
        try:
            with _identify(stream) as picture:
                _check_size(picture, name)
                return _to_rgb(picture)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(
                f"`{name}` is not an image we can read", "JPEG, PNG, WebP, TIFF, BMP and GIF are"
            ) from None
        except Image.DecompressionBombError:
            raise ImageError(f"`{name}` has more than {MOST_PIXELS:,} pixels", "scale it down first") from None
        except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file made them trip over
            raise ImageError(f"`{name}` is damaged: {_reason(error)}", "copy the file again") from None


def preprocess(pictures: Sequence[Image.Image], spec: ImageSpec) -> NDArray[np.float32]:
    """Pixels of RGB pictures as the manifest says: float32 [N, 3, H, W]."""
    return np.stack([_pixels(picture, spec) for picture in pictures])


def _pixels(picture: Image.Image, spec: ImageSpec) -> NDArray[np.float32]:
    fitted = _fit(picture, spec)
    # The order of operations and of roundings is that of transformers' image processors (numpy back end).
    values = np.asarray(fitted, dtype=np.uint8).astype(np.float64) * spec.scale
    mean, std = (np.asarray(numbers, dtype=np.float32) for numbers in (spec.mean, spec.std))
    normalised = (values.astype(np.float32) - mean) / std
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def _fit(picture: Image.Image, spec: ImageSpec) -> Image.Image:
    method = FILTERS[spec.interpolation]
    if spec.resize == "stretch":
        stretched = picture.resize((spec.stretched or spec.size)[::-1], method)
        return _crop(stretched, spec) if spec.stretched else stretched
    short, long = min(picture.size), max(picture.size)
    longer = max(spec.shortest_edge, int(spec.shortest_edge * long / short))
    if longer > MOST_PIXELS // spec.shortest_edge:
        raise ImageError(f"the picture of {picture.width}x{picture.height} pixels is too narrow", "crop it first")
    size = (spec.shortest_edge, longer) if picture.width <= picture.height else (longer, spec.shortest_edge)
    return _crop(picture.resize(size, method), spec)


def _crop(resized: Image.Image, spec: ImageSpec) -> Image.Image:
    """The centre of `spec.size`."""
    height, width = spec.size
    halve = round if spec.crop_rounding == "half_even" else math.floor
    left, top = halve((resized.width - width) / 2), halve((resized.height - height) / 2)
    return resized.crop((left, top, left + width, top + height))


def _identify(stream: Any) -> Image.Image:
    """Opens an image of one of the formats above; the further ones cost the import of all of Pillow's readers."""
    try:
        return Image.open(stream, formats=_COMMON)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(stream, formats=[kind for kind in _FURTHER if kind in Image.OPEN])


def _open(source: object) -> tuple[str, Any]:
    if isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageError("the image's bytes are empty")
        return "bytes", io.BytesIO(source)
    if not isinstance(source, (str, os.PathLike)):
        what = f"`{type(source).__name__}` is not an image"
        raise ImageError(what, "give a path, bytes, a Pillow image or a NumPy array")
    path = Path(source)
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise ImageError(f"`{path}` is a folder, expected an image")
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(f"`{path}` is a pipe or a device, expected a file", "save it to a file first")
        if not found.st_size:
            raise ImageError(f"`{path}` is empty", "copy the file again")
        with open(path, "rb"):  # one that must not be read is not a damaged one
            return str(path), path
    except FileNotFoundError:
        raise ImageError(f"`{path}` does not exist", "check the name") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise ImageError(f"`{path}` cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _check_size(picture: Image.Image, name: str) -> None:
    if picture.width * picture.height > MOST_PIXELS:
        what = f"`{name}` has {picture.width}x{picture.height} pixels, at most {MOST_PIXELS:,} are read"
        raise ImageError(what, "scale it down first")


def _to_rgb(picture: Image.Image) -> Image.Image:
    if not picture.width or not picture.height:
        raise ImageError("the picture has no pixels")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I") or upright.mode == "F":
        upright = _eight_bits(upright)
    if upright.mode in ("RGBa", "La"):
        upright = upright.convert(upright.mode.upper())  # premultiplied: Pillow undoes that first or not at all
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")  # Pillow warns where a palette's transparency is dropped in one step
    return upright.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scales 16-bit and floating greys; Pillow's own conversion clips them to white."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageError("the picture has values that are not finite", "give finite values from 0 to 1")
    highest = 65535.0 if picture.mode.startswith("I") else 1.0
    if values.max(initial=0.0) > highest or values.min(initial=0.0) < 0:
        low, high = float(values.min()), float(values.max())
        values, highest = values - low, (high - low) or 1.0
    return Image.fromarray(np.rint(values * (255.0 / highest)).astype(np.uint8))


def _from_array(array: NDArray[Any]) -> Image.Image:
    shaped = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if not (shaped.ndim == 2 or (shaped.ndim == 3 and shaped.shape[2] in (3, 4))) or not shaped.size:
        raise ImageError(f"an array of shape {list(array.shape)} is not an image", "expected [H, W, 3] (or 1 or 4)")
    if np.issubdtype(shaped.dtype, np.floating):
        if not np.isfinite(shaped).all() or shaped.min() < 0 or shaped.max() > 1:
            raise ImageError("a floating image must lie in 0 to 1", "divide by its maximum, or give uint8")
        shaped = np.rint(shaped * 255).astype(np.uint8)
    if shaped.dtype != np.uint8:
        raise ImageError(f"an array of dtype `{array.dtype}` is not an image", "expected uint8 (0-255) or float (0-1)")
    return Image.fromarray(np.ascontiguousarray(shaped)).convert("RGB")


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
