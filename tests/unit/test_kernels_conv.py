"""Convolutions of our own as onnxruntime runs them, beside torch."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from vlrt.engines import custom_kernels

pytestmark = pytest.mark.skipif(custom_kernels.level() < 1, reason="the processor has no AVX-512")

Floats = npt.NDArray[np.float32]


@pytest.fixture
def twins(kernel_twins: ModuleType) -> ModuleType:
    return kernel_twins


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def packed(weights: Floats) -> Floats:
    """[outputs, inputs, h, w] -> [ceil(outputs / 16), inputs, h * w, 16]."""
    outputs, inputs = weights.shape[:2]
    whole = np.zeros((-(-outputs // 16) * 16, *weights.shape[1:]), np.float32)
    whole[:outputs] = weights
    return np.ascontiguousarray(whole.reshape(-1, 16, inputs, weights[0, 0].size).transpose(0, 2, 3, 1))


def open_convolution(
    twins: ModuleType, weights: Floats, bias: Floats | None = None, added: str = ""
) -> onnxruntime.InferenceSession:
    """A session of one `Conv3x3`; `added`: s for a shift, r for a residual."""
    constants = {"w": packed(weights)} | ({} if bias is None else {"b": bias})
    order = " ".join(["x", "w", "-" if bias is None else "b", *added])
    sizes = {"in_channels": weights.shape[1], "out_channels": weights.shape[0], "activation": "none"}
    kind = f"Conv{weights.shape[2]}x{weights.shape[3]}"
    return twins.open_model(twins.operator_model(kind, dict.fromkeys(("x", *added), 4), constants, order, **sizes))


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("shape", [(2, 20, 6, 11), (1, 3, 1, 1), (3, 40, 8, 8)])
def test_it_is_torchs_convolution(twins: ModuleType, shape: tuple[int, ...], window: int) -> None:
    weights, bias, x = draw(21, shape[1], window, window), draw(21, seed=1), draw(*shape, seed=2)
    shift, residual = draw(shape[0], 21, 1, 1, seed=3), draw(shape[0], 21, *shape[2:], seed=4)
    exact = torch.conv2d(
        *(torch.from_numpy(values).double() for values in (x, weights, bias)), padding=window // 2
    ).numpy()
    limit = 4e-6 * np.abs(exact).max()
    plain, whole = (open_convolution(twins, weights, bias, added) for added in ("", "sr"))
    np.testing.assert_allclose(plain.run(None, {"x": x})[0], exact, rtol=0, atol=limit)
    (y,) = whole.run(None, {"x": x, "s": shift, "r": residual})
    np.testing.assert_allclose(y, exact + shift + residual, rtol=0, atol=limit)


def test_a_picture_without_places_and_none_at_all(twins: ModuleType) -> None:
    session = open_convolution(twins, draw(4, 2, 3, 3))
    assert session.run(None, {"x": draw(0, 2, 5, 5)})[0].shape == (0, 4, 5, 5)
    assert session.run(None, {"x": draw(1, 2, 0, 5)})[0].shape == (1, 4, 0, 5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"x": draw(1, 3, 4, 4)}, r"X is \[1, 3, 4, 4\], expected \[N, 2, H, W\]"),
        ({"s": draw(2, 4, 1, 1)}, r"the shift is \[2, 4, 1, 1\], Y is \[1, 4, 4, 4\]"),
        ({"r": draw(1, 4, 4, 3)}, r"the residual is \[1, 4, 4, 3\]"),
    ],
)
def test_wrong_sizes_are_told(twins: ModuleType, given: dict[str, Floats], told: str) -> None:
    session = open_convolution(twins, draw(4, 2, 3, 3), added="sr")
    right = {"x": draw(1, 2, 4, 4), "s": draw(1, 4, 1, 1), "r": draw(1, 4, 4, 4)}
    with pytest.raises(InvalidArgument, match=told):
        session.run(None, right | given)
