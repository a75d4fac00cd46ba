"""Group norms of our own as onnxruntime runs them, beside torch."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument, RuntimeException

from vlrt.engines import custom_kernels

pytestmark = pytest.mark.skipif(custom_kernels.level() < 1, reason="the processor has no AVX-512")


def draw(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(twins: ModuleType, axes: int, groups: int = 3, activation: str = "none"):  # type: ignore[no-untyped-def]
    constants = {"s": draw(12, seed=1), "b": draw(12, seed=2)}
    attributes = {"channels": 12, "groups": groups, "activation": activation, "epsilon": 1e-5}
    return twins.operator_model("GroupNorm", {"x": axes}, constants, "x s b", **attributes)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("places", [(1,), (7,), (5, 9), (40, 37)])
def test_it_is_torchs_group_norm(kernel_twins: ModuleType, places: tuple[int, ...], activation: str) -> None:
    x = draw(2, 12, *places) * 3 + 20  # far from zero: squares of the values would lose what tells them apart
    session = kernel_twins.open_model(model(kernel_twins, x.ndim, activation=activation))
    scale, bias = (torch.from_numpy(draw(12, seed=seed)).double() for seed in (1, 2))
    exact = torch.nn.functional.group_norm(torch.from_numpy(x).double(), 3, scale, bias, 1e-5)
    exact = torch.nn.functional.silu(exact) if activation == "silu" else exact
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, exact.numpy(), rtol=0, atol=2e-5)
    assert np.array_equal(session.run(None, {"x": x[1:]})[0], y[1:]), "a picture depends on nothing but itself"


def test_bad_sizes_are_told(kernel_twins: ModuleType) -> None:
    session = kernel_twins.open_model(model(kernel_twins, 3))
    assert session.run(None, {"x": draw(2, 12, 0)})[0].shape == (2, 12, 0)
    with pytest.raises(InvalidArgument, match=r"X is \[2, 9, 4\], expected \[N, 12, \.\.\.\]"):
        session.run(None, {"x": draw(2, 9, 4)})
    with pytest.raises(RuntimeException, match="12 channels do not make 5 groups"):
        kernel_twins.open_model(model(kernel_twins, 3, groups=5))
