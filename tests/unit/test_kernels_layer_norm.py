"""Layer norms of our own as onnxruntime runs them, beside NumPy."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from vlrt.engines import custom_kernels

pytestmark = pytest.mark.skipif(custom_kernels.level() < 1, reason="the processor has no AVX-512")


def draw(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def open_norm(twins: ModuleType, width: int, axes: int):  # type: ignore[no-untyped-def]
    constants = {"s": draw(width, seed=1), "b": draw(width, seed=2)}
    model = twins.operator_model("LayerNorm", {"x": axes}, constants, "x s b", width=width, epsilon=1e-5)
    return twins.open_model(model), constants


@pytest.mark.parametrize("width", [1, 7, 16, 70, 768])
def test_it_normalises_each_row_by_itself(kernel_twins: ModuleType, width: int) -> None:
    session, constants = open_norm(kernel_twins, width, 3)
    x = draw(3, 9, width) * 2 + 5
    (y,) = session.run(None, {"x": x})
    wide = x.astype(np.float64)
    apart = wide - wide.mean(-1, keepdims=True)
    expected = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-5) * constants["s"] + constants["b"]
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    assert np.array_equal(session.run(None, {"x": x[1:2, 4:5]})[0], y[1:2, 4:5]), "a row depends on itself alone"


def test_many_rows_are_spread_over_threads(kernel_twins: ModuleType) -> None:
    session, _ = open_norm(kernel_twins, 48, 2)
    x = draw(1500, 48)
    (y,) = session.run(None, {"x": x})
    assert all(np.array_equal(session.run(None, {"x": x[row : row + 1]})[0][0], y[row]) for row in (0, 341, 750, 1499))


def test_bad_sizes_are_told(kernel_twins: ModuleType) -> None:
    session, _ = open_norm(kernel_twins, 8, 2)
    assert session.run(None, {"x": draw(0, 8)})[0].shape == (0, 8)
    with pytest.raises(InvalidArgument, match=r"X is \[2, 9\], expected \[\.\.\., 8\]"):
        session.run(None, {"x": draw(2, 9)})
