"""The C++ generator against torch's own, on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlrt import _C

SEEDS = [0, 1, 1234, 2**31, 2**32 - 1, 2**40 + 7]
SIZES = [1, 2, 3, 8, 15, 16, 17, 24, 31, 32, 100, 1000, 1001]


@pytest.mark.parametrize("seed", SEEDS)
def test_uniforms_are_equal_bit_for_bit(seed: int) -> None:
    theirs, ours = torch.Generator().manual_seed(seed), _C.TorchGenerator(seed)
    for size in SIZES:
        assert np.array_equal(ours.rand(size), torch.rand(size, generator=theirs).numpy())
        assert np.array_equal(ours.rand_double(size), torch.rand(size, dtype=torch.float64, generator=theirs).numpy())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", SEEDS)
def test_normals(seed: int, size: int) -> None:
    """Uniforms are equal; logarithm and cosine may differ in the last digits, which cancel near zero."""
    theirs, ours = torch.Generator().manual_seed(seed), _C.TorchGenerator(seed)
    for _ in range(3):
        assert ours.randn(size) == pytest.approx(torch.randn(size, generator=theirs).numpy(), abs=3e-6)
        expected = torch.randn(size, dtype=torch.float64, generator=theirs).numpy()
        assert ours.randn_double(size) == pytest.approx(expected, abs=1e-12)
    assert np.array_equal(ours.rand(3), torch.rand(3, generator=theirs).numpy()), "as many draws as torch makes"


def test_an_odd_number_of_normals_keeps_one_for_later() -> None:
    theirs, ours = torch.Generator().manual_seed(5), _C.TorchGenerator(5)
    for size in (1, 1, 3, 20, 1):
        assert ours.randn(size) == pytest.approx(torch.randn(size, generator=theirs).numpy(), abs=3e-6)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 2), (-5, 17), (0, 2**28 - 1), (0, 2**28), (7, 2**31), (0, 2**32), (-(2**40), 2**45), (0, 2**62)],
)
def test_integers(low: int, high: int) -> None:
    theirs, ours = torch.Generator().manual_seed(77), _C.TorchGenerator(77)
    assert np.array_equal(ours.randint(low, high, 100), torch.randint(low, high, (100,), generator=theirs).numpy())


def test_multinomial_draws_the_same_tokens() -> None:
    theirs, ours = torch.Generator().manual_seed(9), _C.TorchGenerator(9)
    for vocabulary in (2, 15, 61, 5000):
        logits = torch.randn(20, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 2
        logits[:, 0] = -torch.inf
        probabilities = torch.softmax(logits, -1)
        expected = torch.multinomial(probabilities, 1, generator=theirs)[:, 0].tolist()
        assert [ours.multinomial(row) for row in probabilities.numpy()] == expected
