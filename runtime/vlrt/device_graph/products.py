"""Products with a constant matrix in a graph that onnxruntime optimised, each by the operators it may be made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vlrt.device_graph.model import Model
from vlrt.device_graph.nodes import Node
from vlrt.device_graph.tensors import Array

LINEAR, LINEAR_INT8 = "Linear", "LinearInt8"

_FLOAT_KIND = 1
"""ONNX's number of float32, as `Cast` names it."""


@dataclass
class Product:
    """A product found, and what of its surroundings is computed with it: `act(X W + bias) + residual`.

    Args:
        operator: of ours that will compute it.
        nodes: what it is made of; the last one gives out the result.
        x: name of the left factor.
        weight: name of the right one, a constant matrix.
        transposed: whether it is stored as `[columns, inner]`.
        inner, columns: its sizes.
        scales: name of the scales of an int8 weight.
        bias, residual: names of what is added before and behind the activation.
        activation: as our operators name it.
    """

    operator: str
    nodes: list[Node]
    x: str
    weight: str
    transposed: bool
    inner: int
    columns: int
    scales: str = ""
    bias: str = ""
    residual: str = ""
    activation: str = "none"

    @property
    def output(self) -> str:
        return self.nodes[-1].outputs[0]


def find_product(model: Model, node: Node) -> Product | None:
    """The product that begins with a node; `None` where there is none that our operators compute."""
    recognise = _KINDS.get(node.kind)
    return recognise(model, node) if recognise is not None else None


def is_bias(values: Array | None, columns: int) -> bool:
    """Whether a constant is one number for each column."""
    return values is not None and values.dtype == np.float32 and values.size == columns == values.shape[-1]


def _matrix(model: Model, name: str, dtype: type) -> Array | None:
    values = model.constant(name)
    fits = values is not None and values.ndim == 2 and values.dtype == dtype and values.size > 0
    return values if fits else None


def _float_product(model: Model, node: Node, transposed: bool) -> Product | None:
    x, weight = node.inputs[:2]
    values = _matrix(model, weight, np.float32)
    if values is None:
        return None
    inner, columns = values.shape[::-1] if transposed else values.shape
    return Product(LINEAR, [node], x, weight, transposed, inner, columns)


def _matmul(model: Model, node: Node) -> Product | None:
    return _float_product(model, node, transposed=False)


def _fused_matmul(model: Model, node: Node) -> Product | None:
    if any(node.whole(name, 0) for name in ("transA", "transBatchA", "transBatchB")) or node.number("alpha", 1.0) != 1:
        return None
    return _float_product(model, node, transposed=bool(node.whole("transB", 0)))


_FUSED_ACTIVATIONS = {"": "none", "Relu": "relu"}
"""Activations that onnxruntime fuses into `FusedGemm` and ours can too."""


def _gemm(model: Model, node: Node) -> Product | None:
    if node.whole("transA", 0) or node.number("alpha", 1.0) != 1 or node.number("beta", 1.0) != 1:
        return None
    activation = _FUSED_ACTIVATIONS.get(node.text("activation", ""))
    found = _float_product(model, node, transposed=bool(node.whole("transB", 0)))
    if found is None or activation is None:
        return None
    if node.input(2) and not is_bias(model.constant(node.input(2)), found.columns):
        return None
    found.bias, found.activation = node.input(2), activation
    return found


def _int8_product(model: Model, nodes: list[Node], x: str, weight: str, scales: str, zero: str) -> Product | None:
    values, factors = _matrix(model, weight, np.int8), model.constant(scales)
    zeros = model.constant(zero) if zero else None
    if values is None or factors is None or factors.dtype != np.float32 or (zero and zeros is None):
        return None
    if factors.size not in (1, values.shape[1]) or (zeros is not None and np.any(zeros)):
        return None
    inner, columns = values.shape
    return Product(LINEAR_INT8, nodes, x, weight, False, inner, columns, scales)


def _with_bias(model: Model, found: Product | None, bias: str) -> Product | None:
    if found is None or (bias and not is_bias(model.constant(bias), found.columns)):
        return None
    found.bias = bias
    return found


def _dynamic_product(model: Model, node: Node) -> Product | None:
    x, weight, scales = node.inputs[:3]
    return _with_bias(model, _int8_product(model, [node], x, weight, scales, node.input(3)), node.input(4))


def _quantised(model: Model, quantised: str, zero: str) -> Node | None:
    """The node that quantised a factor as it came, whose zero point the product uses."""
    node = model.producer(quantised)
    is_it = node is not None and node.kind == "DynamicQuantizeLinear" and node.outputs[0] == quantised
    return node if node is not None and is_it and node.outputs[2] == zero else None


def _product_to_float(model: Model, node: Node) -> Product | None:
    source = _quantised(model, node.inputs[0], node.input(4))
    if source is None or node.inputs[2] != source.outputs[1]:
        return None
    found = _int8_product(model, [node], source.inputs[0], node.inputs[1], node.inputs[3], node.input(5))
    return _with_bias(model, found, node.input(6))


def _product_of_integers(model: Model, node: Node) -> Product | None:
    """`MatMulInteger`, `Cast`, and the multiplication by both scales."""
    source = _quantised(model, node.inputs[0], node.input(2))
    cast = model.sole_reader(node.outputs[0])
    scaled = model.sole_reader(cast.outputs[0]) if cast is not None else None
    if source is None or cast is None or scaled is None or cast.kind != "Cast" or scaled.kind != "Mul":
        return None
    if cast.whole("to", 0) != _FLOAT_KIND:
        return None
    other = _other_input(scaled, cast.outputs[0])
    both = model.producer(other)
    if both is None or both.kind != "Mul" or source.outputs[1] not in both.inputs:
        return None
    scales = _other_input(both, source.outputs[1])
    return _int8_product(model, [node, cast, scaled], source.inputs[0], node.inputs[1], scales, node.input(3))


def _other_input(node: Node, name: str) -> str:
    return node.inputs[1] if node.inputs[0] == name else node.inputs[0]


_KINDS: dict[str, Callable[[Model, Node], Product | None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "MatMulInteger": _product_of_integers,
    "com.microsoft.FusedMatMul": _fused_matmul,
    "com.microsoft.FusedGemm": _gemm,
    "com.microsoft.DynamicQuantizeMatMul": _dynamic_product,
    "com.microsoft.MatMulIntegerToFloat": _product_to_float,
}
