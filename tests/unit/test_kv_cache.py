"""Caches are reordered in place, whatever the permutation, touching only filled positions of rows that change."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from vlrt import _C

ROWS, HEADS, LENGTH, DIM = 5, 2, 6, 3


def cache(dtype: str) -> tuple[_C.KvCache, NDArray[np.generic]]:
    made = _C.KvCache(ROWS, HEADS, LENGTH, DIM, np.dtype(dtype).itemsize)
    values = made.bytes.view(dtype)
    values[:] = np.arange(values.size).reshape(values.shape).astype(dtype)
    return made, values


def expected(before: NDArray[np.generic], parents: tuple[int, ...], lengths: tuple[int, ...]) -> NDArray[np.generic]:
    after = before.copy()
    for row, parent in enumerate(parents):
        after[row, :, : lengths[parent]] = before[parent, :, : lengths[parent]]
    return after


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_every_gather_of_four_rows(dtype: str) -> None:
    """All 4^4 parents: permutation cycles, duplicates, fixed rows; every row filled to another length."""
    lengths = (6, 0, 3, 1, 2)
    for parents in itertools.product(range(4), repeat=4):
        made, values = cache(dtype)
        before = values.copy()
        made.reorder(parents, lengths)
        assert np.array_equal(values, expected(before, parents, lengths)), parents


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_may_become_fewer_or_more(rows: int) -> None:
    for parents in itertools.product(range(ROWS), repeat=rows):
        made, values = cache("float32")
        before = values.copy()
        made.reorder(parents, (LENGTH,) * ROWS)
        assert np.array_equal(values[:rows], before[list(parents)])
        assert np.array_equal(values[rows:], before[rows:]), "rows beyond the new ones are left alone"


def test_only_rows_that_change_parent_are_written() -> None:
    for parents in itertools.product(range(5), repeat=5):
        moves = _C.row_moves(parents, 5)
        written = {destination for _, destination in moves if destination >= 0}
        assert written == {row for row, parent in enumerate(parents) if row != parent}
        cycles = sum(destination < 0 for _, destination in moves)
        assert len(moves) == len(written) + cycles, "one extra copy for each cycle, none else"


def test_broadcast_copies_the_prefix_only() -> None:
    made, values = cache("float32")
    before = values.copy()
    made.broadcast(source=1, first=0, count=4, length=2)
    for row in range(4):
        assert np.array_equal(values[row, :, :2], before[1, :, :2])
        assert np.array_equal(values[row, :, 2:], before[row, :, 2:])
    assert np.array_equal(values[4], before[4])


def test_memory_is_aligned_and_outlives_its_cache() -> None:
    made, values = cache("float32")
    assert values.ctypes.data % 64 == 0
    del made
    values[:] = 1
    assert values.sum() == values.size


@pytest.mark.parametrize(
    ("parents", "lengths"), [((5,), (1,) * 5), ((-1,), (1,) * 5), ((0,), (7,)), ((0,), (-1,)), ((2,), (1, 1))]
)
def test_what_lies_outside_is_refused(parents: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    made, values = cache("float32")
    before = values.copy()
    with pytest.raises((ValueError, IndexError)):
        made.reorder(parents, lengths)
    assert np.array_equal(values, before)


def test_broadcast_outside_is_refused() -> None:
    made, _ = cache("float32")
    for source, first, count, length in ((5, 0, 1, 1), (0, 4, 2, 1), (0, 0, 1, 7), (0, 0, 9, 1)):
        with pytest.raises(IndexError):
            made.broadcast(source, first, count, length)
