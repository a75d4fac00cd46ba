"""fp16 on the disk, fp32 in the arithmetic; what fp16 cannot hold stays as it is."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlrt_export.graph_weights import GraphWeights
from vlrt_export.precision import cast_back

_FEWEST = 1024
_LARGEST_ERROR = 1e-3
"""Root of the summed squared error over that of the values; rounding alone gives 3e-4, lost small numbers more."""


def to_halves(graph: GraphWeights, kept: Collection[str] = ()) -> dict[str, int]:
    """Stores weights as fp16 where its range holds them; the graph casts them back.

    Returns:
        Nothing: the kernels stay those of fp32.
    """
    casts = []
    for name in graph.stored_floats():
        if name in kept or graph.size(name) < _FEWEST:
            continue
        halves = halve(graph.read(name))
        if halves is not None:
            casts.append(cast_back(name))
            graph.add(casts[-1].input[0], halves)
    graph.replace_nodes([*casts, *graph.nodes])
    return {}


def halve(values: NDArray[Any]) -> NDArray[np.float16] | None:
    """The values as fp16, or `None` where some overflow or too many are too small for it."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves[np.isfinite(values)]).all():
        return None
    finite = np.isfinite(values)
    exact = np.where(finite, values, 0).astype(np.float32)
    error = np.where(finite, halves, 0).astype(np.float32) - exact
    whole = float(np.square(exact, dtype=np.float64).sum())
    lost = float(np.square(error, dtype=np.float64).sum())
    return halves if lost <= _LARGEST_ERROR**2 * whole else None
