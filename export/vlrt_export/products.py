"""The matrix products and embeddings of a graph whose matrices are constant: what reduced precision can serve."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx

from vlrt_export.graph_weights import GraphWeights

_FEWEST = 512
"""Elements below which a matrix is not worth a kernel of its own."""


@dataclass(frozen=True)
class Product:
    """x [..., K] times a constant matrix, plus a bias where the graph adds one.

    Args:
        name: the matrix's, as the graph knows it.
        x: name of the left factor.
        transposed: whether the matrix is stored as [N, K] instead of [K, N].
        bias: name of the bias [N], or empty.
        output: what the product, or the sum after it, is called.
        nodes: first outputs of the nodes it stands for.
    """

    name: str
    x: str
    transposed: bool
    bias: str
    output: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Lookup:
    """Rows of a constant matrix [V, C] by ids."""

    name: str
    ids: str
    output: str


def products(graph: GraphWeights) -> list[Product]:
    """Every product with a constant matrix, in the graph's order."""
    readers = _readers(graph)
    found = []
    for node in graph.nodes:
        product = _matmul(graph, node, readers) if node.op_type == "MatMul" else None
        product = _gemm(graph, node) if node.op_type == "Gemm" else product
        if product is not None:
            found.append(product)
    return found


def lookups(graph: GraphWeights) -> list[Lookup]:
    """Every embedding: a gather of whole rows of a large constant matrix."""
    found = []
    for node in graph.nodes:
        by_rows = node.op_type == "Gather" and all(a.i == 0 for a in node.attribute if a.name == "axis")
        if by_rows and not graph.is_constant(node.input[1]) and _is_matrix(graph, node.input[0]):
            found.append(Lookup(node.input[0], node.input[1], node.output[0]))
    return found


def _readers(graph: GraphWeights) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {info.name: [] for info in graph.model.graph.output}
    counts = Counter(name for node in graph.nodes for name in node.input)
    for node in graph.nodes:
        for name in node.input:
            if counts[name] == 1 and name not in readers:
                readers[name] = [node]
    return readers


def _matmul(graph: GraphWeights, node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> Product | None:
    x, weight = node.input
    if graph.is_constant(x) or not _is_matrix(graph, weight):
        return None
    columns = graph.shape(weight)[1]
    for after in readers.get(node.output[0], ()):
        others = [name for name in after.input if name != node.output[0]]
        if after.op_type == "Add" and len(others) == 1 and _is_bias(graph, others[0], columns):
            return Product(weight, x, False, others[0], after.output[0], (node.output[0], after.output[0]))
    return Product(weight, x, False, "", node.output[0], (node.output[0],))


def _gemm(graph: GraphWeights, node: onnx.NodeProto) -> Product | None:
    settings = {a.name: a.f if a.type == onnx.AttributeProto.FLOAT else a.i for a in node.attribute}
    plain = settings.get("alpha", 1) == 1 and settings.get("beta", 1) == 1 and not settings.get("transA", 0)
    x, weight, bias = (*node.input, "")[:3]
    if not plain or graph.is_constant(x) or not _is_matrix(graph, weight):
        return None
    transposed = bool(settings.get("transB", 0))
    if bias and not _is_bias(graph, bias, graph.shape(weight)[0 if transposed else 1]):
        return None
    return Product(weight, x, transposed, bias, node.output[0], (node.output[0],))


def _is_matrix(graph: GraphWeights, name: str) -> bool:
    known = graph.is_constant(name) and graph.is_float(name) and len(graph.shape(name)) == 2
    return known and graph.size(name) >= _FEWEST


def _is_bias(graph: GraphWeights, name: str, columns: int) -> bool:
    return graph.is_constant(name) and graph.is_float(name) and graph.shape(name) == (columns,)
