"""Matrices as small integers: one scale a column, or one scale a block of a column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_COLUMNS = 4096
"""Columns that are worked on at once: a large vocabulary's matrix is to be in memory as few times as can be."""

_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of a block's largest value that four bits may end at; the one with the least squared error is taken."""


@dataclass(frozen=True)
class Columns:
    """A matrix [K, N] as int8, each column divided by its own scale.

    Args:
        values: int8 [K, N].
        scales: float32 [N].
    """

    values: Array
    scales: Array

    def restored(self) -> Array:
        """The matrix that the integers stand for, float32 [K, N]."""
        return self.values.astype(np.float32) * self.scales


@dataclass(frozen=True)
class Blocks:
    """A matrix [N, K] as unsigned integers of few bits, zero in their middle, each block of a row with its scale.

    Args:
        values: uint8 [N, blocks, bytes]; of four bits two share a byte, the earlier one low.
        scales: float32 [N, blocks].
        bits: 4 or 8.
        block: elements of a block.
        length: K; the last block may be longer.
    """

    values: Array
    scales: Array
    bits: int
    block: int
    length: int

    def restored(self) -> Array:
        """The matrix that the integers stand for, float32 [N, K]."""
        values = self.values
        if self.bits == 4:
            values = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:-1], -1)
        centred = values.astype(np.float32) - (1 << (self.bits - 1))
        return (centred * self.scales[..., None]).reshape(len(values), -1)[:, : self.length]


def by_column(weights: Array) -> Columns:
    """int8 per column, symmetric: the largest absolute value becomes 127.

    Args:
        weights: float32 [K, N].

    Source: Jacob et al. (arXiv 1712.05877), section 2.1, with zero points of zero and a scale per output channel.
    """
    values = np.empty(weights.shape, np.int8)
    scales = np.empty(weights.shape[1], np.float32)
    for start in range(0, weights.shape[1], _COLUMNS):
        part = np.ascontiguousarray(weights[:, start : start + _COLUMNS])
        found = _scale(np.abs(part).max(0), 127)
        scales[start : start + _COLUMNS] = found
        values[:, start : start + _COLUMNS] = np.clip(np.rint(part / found), -127, 127)
    return Columns(values, scales)


def by_block(weights: Array, bits: int, block: int) -> Blocks:
    """Symmetric integers of `bits` with a scale for every `block` elements of a row.

    Args:
        weights: float32 [N, K].
        bits: 4 or 8.
        block: a power of two, at least 16.
    """
    if bits not in (4, 8) or block < 16 or block & (block - 1):
        raise ValueError(f"{bits} bits in blocks of {block} are not served")
    count = -(-weights.shape[1] // block)
    values = np.empty((len(weights), count, block * bits // 8), np.uint8)
    scales = np.empty((len(weights), count), np.float32)
    for start in range(0, len(weights), _COLUMNS):
        part = weights[start : start + _COLUMNS]
        padded = np.pad(part, ((0, 0), (0, count * block - part.shape[1]))).reshape(len(part), count, block)
        scales[start : start + _COLUMNS] = found = _best_scale(padded, bits)
        integers = _round(padded, found, bits) + (1 << (bits - 1))
        values[start : start + _COLUMNS] = _packed(integers.astype(np.uint8), bits)
    return Blocks(values, scales, bits, block, weights.shape[1])


def _best_scale(blocks: Array, bits: int) -> Array:
    whole = np.abs(blocks).max(-1)
    most = (1 << (bits - 1)) - 1
    if bits == 8:
        return _scale(whole, most)
    best, least = _scale(whole, most), np.full(whole.shape, np.inf, np.float32)
    for shrink in _SHRINKS:
        scale = _scale(whole * shrink, most)
        error = np.square(_round(blocks, scale, bits) * scale[..., None] - blocks).sum(-1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _scale(largest: Array, most: int) -> Array:
    """Columns of zeros get the scale one."""
    return np.where(largest > 0, largest / most, 1.0).astype(np.float32)


def _round(blocks: Array, scale: Array, bits: int) -> Array:
    half = 1 << (bits - 1)
    return np.clip(np.rint(blocks / scale[..., None]), -half, half - 1)


def _packed(values: Array, bits: int) -> Array:
    return values if bits == 8 else values[..., 0::2] | (values[..., 1::2] << 4)
