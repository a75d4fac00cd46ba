"""Weights in the order in which our kernels read them, written block by block.

Both kernels go through the columns in groups of sixteen, a processor's register of floats; see `cpp_ext/kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np

from vlrt.device_graph.tensors import FLOAT, INT8, Array, Tensor

LANES = 16
"""Columns in a group."""

DEPTH = 4
"""Rows of an int8 weight that one instruction multiplies and adds up."""

_GROUPS = 64
"""Groups that are packed at once: some megabytes."""


def pack_floats(name: str, weight: Array, transposed: bool) -> Tensor:
    """A float32 weight as `[ceil(columns / 16), inner, 16]`, with zeros beyond the last column.

    Args:
        name: of the new weight.
        weight: `[inner, columns]`, or `[columns, inner]` if it is stored transposed.
        transposed: whether it is.
    """
    inner, columns = weight.shape[::-1] if transposed else weight.shape
    dims = (-(-columns // LANES), inner, LANES)
    return Tensor(name, dims, FLOAT, made=partial(_float_blocks, weight, transposed))


def pack_bytes(name: str, weight: Array) -> Tensor:
    """An int8 weight `[inner, columns]` as `[ceil(columns / 16), ceil(inner / 4), 16, 4]`, with zeros beyond."""
    inner, columns = weight.shape
    dims = (-(-columns // LANES), -(-inner // DEPTH), LANES, DEPTH)
    return Tensor(name, dims, INT8, made=partial(_byte_blocks, weight))


def packed_bytes_name(weight: str) -> str:
    """The name that an int8 weight has when it is packed."""
    return f"{weight}.packed"


def pack_filters(name: str, weight: Array) -> Tensor:
    """Filters `[outputs, inputs, h, w]` of float32 as `[ceil(outputs / 16), inputs, h·w, 16]`, with zeros beyond."""
    outputs, inputs, *window = weight.shape
    dims = (-(-outputs // LANES), inputs, math.prod(window), LANES)
    return Tensor(name, dims, FLOAT, made=partial(_float_blocks, weight.reshape(outputs, -1), True))


def sums_of_columns(weight: Array) -> Array:
    """What each column of an int8 weight `[inner, columns]` adds up to, int32 `[columns]`."""
    sums: Array = weight.sum(axis=0, dtype=np.int32)
    return sums


def _float_blocks(weight: Array, transposed: bool) -> Iterator[Array]:
    columns = weight.shape[0 if transposed else 1]
    for first in range(0, columns, LANES * _GROUPS):
        last = min(columns, first + LANES * _GROUPS)
        part = weight[first:last].T if transposed else weight[:, first:last]
        yield _grouped(part)


def _grouped(part: Array) -> Array:
    """`[inner, columns]` as `[ceil(columns / 16), inner, 16]`."""
    inner, columns = part.shape
    whole = columns // LANES
    packed = np.zeros((-(-columns // LANES), inner, LANES), part.dtype)
    packed[:whole] = part[:, : whole * LANES].reshape(inner, whole, LANES).transpose(1, 0, 2)
    packed[whole:, :, : columns - whole * LANES] = part[:, whole * LANES :]
    return packed


def _byte_blocks(weight: Array) -> Iterator[Array]:
    inner, columns = weight.shape
    quads = -(-inner // DEPTH)
    for first in range(0, columns, LANES * _GROUPS):
        part = weight[:, first : first + LANES * _GROUPS]
        groups = -(-part.shape[1] // LANES)
        padded = np.zeros((quads * DEPTH, groups * LANES), np.int8)
        padded[:inner, : part.shape[1]] = part
        yield np.ascontiguousarray(padded.reshape(quads, DEPTH, groups, LANES).transpose(2, 0, 3, 1))
