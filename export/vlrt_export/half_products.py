"""Graphs whose products are computed in fp16 and everything else in fp32, as GPUs want them.

What torch's autocast does to a model: matrix products, convolutions and attention take halves, while sums, norms and
softmax keep their range (Micikevicius et al. 2018, "Mixed Precision Training", section 3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ATTENTION = "GroupQueryAttention"
_PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", ATTENTION}
_OF_ATTENTION = (0, 1, 2, 3, 4, 10)
"""Its inputs in floats: query, key, value, both caches, and what is added to the scores."""

_CACHES = (1, 2)
"""Its outputs that stay in fp16: the caches, which are the graph's own."""


def compute_products_in_halves(model: onnx.ModelProto) -> None:
    """Changes a graph in place; inputs and outputs keep their types but for caches, which become fp16."""
    _Halves(model.graph).convert()
    del model.graph.value_info[:]


class _Halves:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._readers: dict[str, set[str]] = defaultdict(set)
        for node in graph.node:
            for name in node.input:
                self._readers[name].add(node.op_type)
        self._caches = {i.name: i for i in (*graph.input, *graph.output) if self._readers[i.name] <= {ATTENTION}}
        self._half_of: dict[str, str] = {n.output[0]: n.input[0] for n in graph.node if self._widens(n)}
        self._widened: list[onnx.NodeProto] = []
        self._nodes: list[onnx.NodeProto] = []

    def convert(self) -> None:
        for node in list(self._graph.node):
            if node.op_type in _PRODUCTS and self._is_float(node):
                self._convert(node)
            else:
                self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._needed())

    def _convert(self, node: onnx.NodeProto) -> None:
        places = _OF_ATTENTION if node.op_type == ATTENTION else range(len(node.input))
        for place in places:
            if place < len(node.input) and node.input[place]:
                node.input[place] = self._half(node.input[place])
        self._nodes.append(node)
        for place, name in enumerate(node.output):
            if node.op_type == ATTENTION and place in _CACHES:
                self._caches[name].type.tensor_type.elem_type = TensorProto.FLOAT16
            else:
                node.output[place] = self._half_of[name] = f"{name}.half"
                self._nodes.append(_cast(f"{name}.half", name, TensorProto.FLOAT))

    def _half(self, name: str) -> str:
        """The name of a tensor in fp16."""
        if name not in self._half_of:
            self._half_of[name] = self._narrowed(name)
        return self._half_of[name]

    def _narrowed(self, name: str) -> str:
        half = f"{name}.half"
        if name in self._weights:
            tensor = self._weights[name]
            limit = np.finfo(np.float16).max
            values = np.clip(numpy_helper.to_array(tensor), -limit, limit).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, half))
            self._widened.append(_cast(half, name, TensorProto.FLOAT))  # for others than products, if there are any
            return half
        if name in self._caches:
            self._caches[name].type.tensor_type.elem_type = TensorProto.FLOAT16
            return name
        self._nodes.append(_cast(name, half, TensorProto.FLOAT16))
        return half

    def _widens(self, node: onnx.NodeProto) -> bool:
        """A weight that is stored as fp16 and cast back, as the exporter stores what fp16 holds exactly."""
        tensor = self._weights.get(node.input[0]) if node.op_type == "Cast" else None
        return tensor is not None and tensor.data_type == TensorProto.FLOAT16

    def _is_float(self, node: onnx.NodeProto) -> bool:
        """Products of whole numbers, as of sizes, are no products of ours."""
        kinds = {self._weights[name].data_type for name in node.input if name in self._weights}
        return not kinds - {TensorProto.FLOAT, TensorProto.FLOAT16}

    def _needed(self) -> Iterator[onnx.NodeProto]:
        """The nodes, less casts whose result nobody reads now."""
        read = {name for node in self._nodes for name in node.input} | {info.name for info in self._graph.output}
        for node in (*self._widened, *self._nodes):
            if node.op_type != "Cast" or set(node.output) & read:
                yield node


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}.cast", to=kind)
