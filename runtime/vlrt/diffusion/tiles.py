"""Autoencoders over large pictures in overlapping tiles, whose seams are blended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlrt.diffusion_sections import StageSpec

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Tiling:
    """How arrays are cut and put together again.

    Args:
        given, made: rows and columns of a tile of what is given and of what is made of it.
        overlap: share of a tile that overlaps with the next one.
    """

    given: int
    made: int
    overlap: float

    def run(self, work: Callable[[Array], Array], array: Array) -> Array:
        """Applies `work` to tiles [N, C, ≤given, ≤given], each result blended with those above and to the left.

        Source: diffusers' ``AutoencoderKL.tiled_decode`` and ``_tiled_encode``.
        """
        stride = int(self.given * (1 - self.overlap))
        blend = int(self.made * self.overlap)
        kept = self.made - blend
        rows: list[Array] = []
        above: list[Array] = []
        for y in range(0, array.shape[2], stride):
            made: list[Array] = []
            for x in range(0, array.shape[3], stride):
                tile = work(np.ascontiguousarray(array[:, :, y : y + self.given, x : x + self.given])).copy()
                if above:
                    _blend(above[len(made)], tile, blend, axis=2)
                if made:
                    _blend(made[-1], tile, blend, axis=3)
                made.append(tile)
            above = made
            rows.append(np.concatenate([tile[:, :, :kept, :kept] for tile in made], axis=3))
        return np.concatenate(rows, axis=2)


def _blend(before: Array, tile: Array, extent: int, axis: int) -> None:
    """Lets `tile` begin as `before` ends, linearly over `extent` rows or columns."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if not extent:
        return
    shape = [1, 1, 1, 1]
    shape[axis] = extent
    share = (np.arange(extent, dtype=np.float32) / np.float32(extent)).reshape(shape)
    old = np.take(before, range(before.shape[axis] - extent, before.shape[axis]), axis=axis)
    start = (slice(None),) * axis + (slice(0, extent),)
    tile[start] = old * (1 - share) + tile[start] * share


def tiles_wanted(stage: StageSpec, shape: tuple[int, ...], asked: bool | None) -> bool:
    """Whether an autoencoder works in tiles: as asked, else where a sample has more rows or columns than two tiles."""
    if asked is not None:
        return asked
    return bool(stage.tile) and len(shape) == 3 and max(shape[1:]) > 2 * stage.tile
