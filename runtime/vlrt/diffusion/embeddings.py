"""Ways between embeddings (Ramesh et al. 2022, arXiv 2204.06125, section 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlrt.errors import UsageError

Array = NDArray[np.float32]
_TINY = np.float32(1e-12)


def slerp(start: Array, end: Array, share: float) -> Array:
    """Spherical interpolation (Shoemake 1985): `start` at 0, `end` at 1.

    Args:
        start, end: float32 [N, D], of any length.
        share: of the angle between them.
    """
    directions = (
        vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY) for vectors in (start, end)
    )
    cosine = np.multiply(*directions).sum(-1, keepdims=True, dtype=np.float64).clip(-1, 1)
    angle = np.arccos(cosine)
    sine = np.sin(angle)
    small = sine < 1e-6  # nearly the same direction, where the formula divides by zero
    safe = np.where(small, 1.0, sine)
    first = np.where(small, 1 - share, np.sin((1 - share) * angle) / safe)
    second = np.where(small, share, np.sin(share * angle) / safe)
    between: Array = (first * start + second * end).astype(np.float32)
    return between


def difference(before: Array, after: Array, length: float) -> Array:
    """The direction from one sentence's embedding to another's, at a given length: [N, D].

    Raises:
        UsageError: the sentences mean the same to the model.
    """
    gap = after - before
    norm = np.linalg.norm(gap, axis=-1, keepdims=True)
    if not (norm > 0).all():
        raise UsageError("the two sentences mean the same to the model", "give two that differ")
    scaled: Array = (gap / norm * length).astype(np.float32)
    return scaled
