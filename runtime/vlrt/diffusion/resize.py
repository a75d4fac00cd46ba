"""Resizing of arrays as torch's `interpolate` does it, as two small matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlrt.errors import VlrtError

Array = NDArray[np.float32]


def resize(array: Array, size: tuple[int, int], kind: str) -> Array:
    """Resizes the last two axes.

    Args:
        array: float32 [N, C, h, w].
        size: height and width of the result.
        kind: ``bilinear``, ``bilinear_aligned`` (corner to corner), ``bicubic``, ``bicubic_antialiased``.

    Returns:
        float32 [N, C, height, width].

    Source: torch.nn.functional.interpolate in these modes; the cubic is Keys' with a = −0.75, antialiased −0.5.
    """
    rows = _weights(array.shape[2], size[0], kind)
    columns = _weights(array.shape[3], size[1], kind)
    return np.ascontiguousarray(rows @ array @ columns.T)


def nearest(array: Array, size: tuple[int, int]) -> Array:
    """Resizes the last two axes by nearest neighbours, as torch's `interpolate` does by default."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, array.shape[-2:]))
    return np.ascontiguousarray(array[..., rows[:, None], columns[None, :]])


def _weights(old: int, new: int, kind: str) -> Array:
    """What each old place gives to each new one: [new, old], rows sum to one."""
    if kind == "bicubic_antialiased":
        return _antialiased(old, new)
    if kind not in ("bilinear", "bilinear_aligned", "bicubic"):
        raise VlrtError(f"`{kind}` is not a way to resize")
    aligned = kind == "bilinear_aligned"
    scale = ((old - 1) / (new - 1) if new > 1 else 0.0) if aligned else old / new
    centres = np.arange(new) * scale if aligned else (np.arange(new) + 0.5) * scale - 0.5
    if kind != "bicubic":
        centres = centres.clip(0, old - 1)
    first = np.floor(centres).astype(np.int64)
    weights = np.zeros((new, old), np.float64)
    taps = range(-1, 3) if kind == "bicubic" else range(2)
    for tap in taps:
        distance = np.abs(centres - (first + tap))
        share = _cubic(distance, -0.75) if kind == "bicubic" else (1 - distance).clip(0, 1)
        np.add.at(weights, (np.arange(new), (first + tap).clip(0, old - 1)), share)
    return weights.astype(np.float32)


def _antialiased(old: int, new: int) -> Array:
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    places = np.arange(old) + 0.5
    distance = np.abs(places[None, :] - centres[:, None]) / stretch
    weights = np.where(distance < 2, _cubic(distance, -0.5), 0.0)
    normalised: Array = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return normalised


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
