"""What the kernels compute and how their weights are packed, in NumPy; and one-operator graphs to run them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from vlrt.engines import custom_kernels

Array = npt.NDArray[Any]
PANEL, QUAD = 16, 4

_erf = np.vectorize(math.erf)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
}


def packed(weights: Array) -> Array:
    """[inner, columns] -> [ceil(columns / 16), inner, 16]; int8: [ceil(columns / 16), ceil(inner / 4), 16, 4]."""
    quad = QUAD if weights.dtype == np.int8 else 1
    inner, columns = (-(-size // unit) * unit for size, unit in zip(weights.shape, (quad, PANEL)))
    whole = np.zeros((inner, columns), weights.dtype)
    whole[: weights.shape[0], : weights.shape[1]] = weights
    blocks = whole.reshape(inner // quad, quad, columns // PANEL, PANEL).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(blocks if quad > 1 else blocks[..., 0])


def linear(x: Array, weights: Array, activation: str, bias: Array | None, residual: Array | None) -> Array:
    """act(x W + bias) + residual, in double precision."""
    product = x.astype(np.float64) @ weights
    y = ACTIVATIONS[activation](product + (0 if bias is None else bias))
    return y + (0 if residual is None else residual)


def quantised(x: Array) -> tuple[Array, Array, Array]:
    """ONNX's DynamicQuantizeLinear of each row: bytes, scale and zero point."""
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    scale = ((high - low) / np.float32(255)).astype(np.float32)
    scale[scale == 0] = 1
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.clip(np.rint(x / scale) + zero, 0, 255), scale, zero


def attention(query: Array, key: Array, value: Array, mask: Array | float, scale: float) -> Array:
    """softmax(scale * query key^T + mask) value, all [batch, heads, tokens, width], in double precision."""
    scores = query.astype(np.float64) @ key.swapaxes(-1, -2) * scale + mask
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True) @ value)


def laid_out(x: Array, layout: str) -> Array:
    """[batch, heads, tokens, width] in another order of its axes."""
    orders = {"bhtd": (0, 1, 2, 3), "bhdt": (0, 1, 3, 2), "bthd": (0, 2, 1, 3), "bt(hd)": (0, 2, 1, 3)}
    moved = np.ascontiguousarray(x.transpose(orders[layout]))
    return moved.reshape(*moved.shape[:2], -1) if layout == "bt(hd)" else moved


def operator_model(
    kind: str, inputs: Mapping[str, int], weights: Mapping[str, Array], order: str, **attributes: Any
) -> onnx.ModelProto:
    """A graph of one operator with the output `y`.

    Args:
        inputs: name -> number of axes, each of any size.
        weights: initializers by name.
        order: of the operator's inputs, names apart by spaces; `-` for one that is left out.
    """
    names = ["" if name == "-" else name for name in order.split()]
    node = helper.make_node(kind, names, ["y"], domain=custom_kernels.DOMAIN, **attributes)
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{axis}" for axis in range(rank)])
        for name, rank in inputs.items()
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph([node], kind, given, [result], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(custom_kernels.DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def open_model(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    """A session of two threads with the kernels registered."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 2
    settings.log_severity_level = 4
    custom_kernels.register(settings)
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def open_linear(weights: Array, activation: str, bias: Array | None, residual: bool) -> onnxruntime.InferenceSession:
    """`Linear` or, for weights [inner, columns] of eight bits, `LinearInt8` with scales of 1 / 64."""
    constants = {"w": packed(weights)}
    if weights.dtype == np.int8:
        constants["s"] = np.full(weights.shape[1], 1 / 64, np.float32)
        constants["n"] = weights.sum(0, dtype=np.int32)
    if bias is not None:
        constants["b"] = bias
    order = " ".join(["x", *(name for name in constants if name != "b"), "-" if bias is None else "b"])
    inputs = {"x": 2, **({"r": 2} if residual else {})}
    sizes = {"inner": weights.shape[0], "columns": weights.shape[1]}
    kind = "LinearInt8" if weights.dtype == np.int8 else "Linear"
    model = operator_model(kind, inputs, constants, order + (" r" if residual else ""), activation=activation, **sizes)
    return open_model(model)
