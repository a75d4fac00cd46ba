"""Matrices as small integers, against what the engine makes of them."""

from __future__ import annotations

import numpy as np
import pytest

from vlrt_export.quantise import by_block, by_column
from vlrt_export.reduced_storage import halve


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_columns_are_within_half_a_step() -> None:
    weights = drawn(40, 9) * np.logspace(-3, 3, 9, dtype=np.float32)
    found = by_column(weights)
    assert found.values.dtype == np.int8
    assert (np.abs(found.values).max(0) == 127).all(), "every column uses the whole range"
    assert (np.abs(found.restored() - weights) <= found.scales * 0.5001).all()


def test_a_column_of_zeros_stays_zero() -> None:
    weights = drawn(8, 3)
    weights[:, 1] = 0
    assert (by_column(weights).restored()[:, 1] == 0).all()


@pytest.mark.parametrize("length", [64, 70, 16])
def test_eight_bit_blocks_are_within_half_a_step(length: int) -> None:
    weights = drawn(5, length)
    found = by_block(weights, 8, 32)
    assert found.restored().shape == weights.shape
    steps = np.repeat(found.scales, 32, axis=1)[:, :length]
    assert (np.abs(found.restored() - weights) <= steps * 0.5001).all()


def test_four_bits_search_for_the_least_squared_error() -> None:
    weights = drawn(64, 128) ** 3  # long tails: the largest value is a bad place to end
    found = by_block(weights, 4, 32)
    assert found.values.shape == (64, 4, 16)
    plain = np.abs(weights.reshape(64, 4, 32)).max(-1, keepdims=True) / 7
    rounded = (np.clip(np.rint(weights.reshape(64, 4, 32) / plain), -8, 7) * plain).reshape(64, 128)
    assert np.square(found.restored() - weights).sum() < np.square(rounded - weights).sum()


@pytest.mark.parametrize(("bits", "block"), [(3, 32), (4, 24), (8, 8)])
def test_other_widths_are_refused(bits: int, block: int) -> None:
    with pytest.raises(ValueError, match="not served"):
        by_block(drawn(2, 32), bits, block)


def test_halves_where_the_range_allows() -> None:
    weights = drawn(64, 64)
    found = halve(weights)
    assert found is not None
    assert np.abs(found.astype(np.float32) - weights).max() < 2e-3
    weights[0, 0] = 1e5
    assert halve(weights) is None, "an overflow"
    assert halve(weights.clip(-1, 1) * 1e-7) is None, "numbers that fp16 loses"
    masked = weights.clip(-1, 1)
    masked[0, 0] = -np.inf
    kept = halve(masked)
    assert kept is not None
    assert kept[0, 0] == -np.inf
