"""Weights that a name and a shape decide, so that goldens of large layouts need not hold them."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def seeded(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Random tensors by name: matrices and kernels that keep a signal's size, gains about one, small biases."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) < 2:
        return (0.1 * drawn + (name.endswith("weight"))).astype(np.float32)
    inputs = shape[1] if "embed" in name else math.prod(shape[1:])
    return (drawn / math.sqrt(inputs)).astype(np.float32)
