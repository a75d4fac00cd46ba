"""Embeddings of our own as onnxruntime runs them, beside NumPy."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from vlrt.engines import custom_kernels

pytestmark = pytest.mark.skipif(custom_kernels.level() < 2, reason="the processor has no AVX-512 VNNI")


@pytest.mark.parametrize(("inner", "columns"), [(7, 19), (64, 50)])
def test_it_takes_columns_of_packed_bytes(kernel_twins: ModuleType, inner: int, columns: int) -> None:
    random = np.random.default_rng(3)
    weight = random.integers(-128, 128, (inner, columns), np.int8)
    scales = random.random(columns, np.float32)
    weights = {"w": kernel_twins.packed(weight), "s": scales}
    model = kernel_twins.operator_model("EmbedInt8", {"ids": 2}, weights, "ids w s", inner=inner, columns=columns)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    session = kernel_twins.open_model(model)
    ids = np.array([[0, columns - 1, -1], [5, -columns, 17]])
    expected = (weight.astype(np.float32) * scales).T[ids]
    assert np.array_equal(session.run(None, {"ids": ids})[0], expected)
    assert session.run(None, {"ids": ids[:0]})[0].shape == (0, 3, inner)
    for bad in (columns, -columns - 1):
        with pytest.raises(InvalidArgument, match=f"id {bad} is none of {columns}"):
            session.run(None, {"ids": np.array([[bad]])})
