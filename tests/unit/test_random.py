"""Five pinned values of every distribution, so that seeds keep their meaning where torch is not installed.

Made with torch 2.13.0 on the CPU, `g = torch.Generator().manual_seed(2024)` before each line:

    torch.rand(5, generator=g); torch.rand(5, dtype=torch.float64, generator=g)
    torch.randn(5, generator=g); torch.randn(16, generator=g)[:5]
    torch.randint(0, 1000, (5,), generator=g)
    [torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), 1, generator=g) for _ in range(5)]
"""

from __future__ import annotations

import numpy as np
import pytest

from vlrt import _C


@pytest.fixture
def generator() -> _C.TorchGenerator:
    return _C.TorchGenerator(2024)


def test_uniform(generator: _C.TorchGenerator) -> None:
    expected = [0.5317158699035645, 0.8312679529190063, 0.9718379974365234, 0.11930084228515625, 0.16690224409103394]
    assert generator.rand(5).tolist() == expected


def test_uniform_double(generator: _C.TorchGenerator) -> None:
    expected = [0.25372732026738665, 0.7747043317543358, 0.33521823650125215, 0.7199396577107312, 0.878804200793084]
    assert generator.rand_double(5).tolist() == expected


def test_normal_one_by_one(generator: _C.TorchGenerator) -> None:
    expected = [-0.040429167449474335, 1.7259920835494995, -0.8140387535095215, 1.372166633605957, 0.5059648156166077]
    assert generator.randn(5) == pytest.approx(expected, abs=1e-6)


def test_normal_in_blocks(generator: _C.TorchGenerator) -> None:
    expected = [-1.2262355089187622, -0.009314819239079952, 1.541957974433899, -0.4656696021556854, 0.2795030474662781]
    assert generator.randn(16)[:5].tolist() == expected


def test_integers(generator: _C.TorchGenerator) -> None:
    assert generator.randint(0, 1000, 5).tolist() == [112, 50, 184, 360, 523]


def test_multinomial(generator: _C.TorchGenerator) -> None:
    row = np.float32([0.1, 0.2, 0.3, 0.4])
    assert [generator.multinomial(row) for _ in range(5)] == [2, 1, 2, 3, 2]


def test_multinomial_follows_its_probabilities(generator: _C.TorchGenerator) -> None:
    row = np.float32([0.5, 0.0, 0.3, 0.2])
    draws = np.bincount([generator.multinomial(row) for _ in range(20_000)], minlength=4) / 20_000
    # Three standard deviations of the widest are 0.0106.
    assert draws == pytest.approx(row, abs=0.011)
    assert draws[1] == 0


def test_an_empty_range_is_refused(generator: _C.TorchGenerator) -> None:
    with pytest.raises(ValueError, match="low < high"):
        generator.randint(3, 3, 1)


def test_the_first_draw_is_mersenne_twister_s() -> None:
    """Matsumoto & Nishimura's reference: seed 5489 begins with 3499211612."""
    assert _C.TorchGenerator(5489).random() == 3499211612
