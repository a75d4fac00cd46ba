"""Rewrites of a graph's constant matrices: as int8 with dynamic activations, or in blocks of eight or four bits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from vlrt_export.graph_weights import MICROSOFT, GraphWeights
from vlrt_export.products import Lookup, Product, lookups, products
from vlrt_export.quantise import by_block, by_column

DYNAMIC, BLOCKS = "DynamicQuantizeMatMul", "MatMulNBits"
_LARGE_LOOKUP = 1 << 18
"""Elements from which an embedding is stored reduced even where no product shares its matrix."""

_BLOCK = {8: 128, 4: 32}
"""Most elements that share a scale: eight bits are exact enough with few scales, four are not."""

_ROUNDED_ACTIVATIONS = 4
"""The operator's accuracy level that multiplies integers: activations too are rounded to int8, block by block."""

Rewrite = Callable[[GraphWeights, Collection[str]], dict[str, int]]
"""Changes a graph, matrices of the given names left out; says how many nodes of each reduced kernel it made."""


def to_int8(graph: GraphWeights, kept: Collection[str] = ()) -> dict[str, int]:
    """int8 weights with a scale per column; activations are rounded as they come, with a scale per tensor.

    Source: onnxruntime's contrib operator ``DynamicQuantizeMatMul``.
    """
    return _rewrite(graph, kept, _dynamic_product, _column_lookup, DYNAMIC)


def to_blocks(bits: int) -> Rewrite:
    """Weights of 8 or 4 bits with a scale per block of a column.

    Source: onnxruntime's contrib operators ``MatMulNBits`` and ``GatherBlockQuantized``.
    """

    def rewrite(graph: GraphWeights, kept: Collection[str] = ()) -> dict[str, int]:
        def product(graph: GraphWeights, found: Product) -> list[NodeProto]:
            return _block_product(graph, found, bits)

        def lookup(graph: GraphWeights, found: Lookup, shared: bool) -> list[NodeProto]:
            return _block_lookup(graph, found, bits)

        return _rewrite(graph, kept, product, lookup, BLOCKS)

    return rewrite


def matrices(graph: GraphWeights) -> list[str]:
    """Names of the matrices that the rewrites would reduce, each once."""
    found = [product.name for product in products(graph)]
    found += [lookup.name for lookup in lookups(graph) if graph.size(lookup.name) >= _LARGE_LOOKUP]
    return list(dict.fromkeys(found))


def _rewrite(
    graph: GraphWeights,
    kept: Collection[str],
    make_product: Callable[[GraphWeights, Product], list[NodeProto]],
    make_lookup: Callable[[GraphWeights, Lookup, bool], list[NodeProto]],
    kernel: str,
) -> dict[str, int]:
    by_node, replaced = _products(graph, kept), set()
    shared = {product.name for product in by_node.values()}
    by_output = {one.output: one for one in lookups(graph) if one.name not in kept}
    nodes: list[NodeProto] = []
    for node in graph.nodes:
        product, lookup = by_node.get(node.output[0]), by_output.get(node.output[0])
        if product is not None:
            replaced |= set(product.nodes)
            nodes += make_product(graph, product)
        elif lookup is not None and (lookup.name in shared or graph.size(lookup.name) >= _LARGE_LOOKUP):
            nodes += make_lookup(graph, lookup, lookup.name in shared)
        elif node.output[0] not in replaced:
            nodes.append(node)
    graph.replace_nodes(nodes)
    return {kernel: len(by_node)} if by_node else {}


def _products(graph: GraphWeights, kept: Collection[str]) -> dict[str, Product]:
    """Products by the first output of their first node; what computes the bias stands before it, being constant."""
    return {found.nodes[0]: found for found in products(graph) if found.name not in kept}


def _dynamic_product(graph: GraphWeights, found: Product) -> list[NodeProto]:
    values, scales = f"{found.name}.int8", f"{found.name}.scale"
    if not graph.is_new(values):
        weights = graph.read(found.name)
        quantised = by_column(weights.T if found.transposed else weights)
        graph.add(values, quantised.values)
        graph.add(scales, quantised.scales)
    inputs = [found.x, values, scales, "", *filter(None, (found.bias,))]
    return [helper.make_node(DYNAMIC, inputs, [found.output], f"{found.name}.product", domain=MICROSOFT)]


def _column_lookup(graph: GraphWeights, found: Lookup, shared: bool) -> list[NodeProto]:
    """Rows of an embedding: those of its own int8 matrix, or columns of the one that the last layer multiplies by."""
    values, scales, base = f"{found.name}.int8", f"{found.name}.scale", f"{found.output}.row"
    if shared:
        return list(_shared_rows(graph, found, values, scales, base))
    if not graph.is_new(values):
        quantised = by_column(graph.read(found.name).T)
        graph.add(values, np.ascontiguousarray(quantised.values.T))
        graph.add(scales, quantised.scales)
    last = graph.add("reduced.last_axis", np.array([-1], np.int64))
    return [
        helper.make_node("Gather", [values, found.ids], [f"{base}.int8"], f"{base}.gather"),
        helper.make_node("Cast", [f"{base}.int8"], [f"{base}.float"], f"{base}.cast", to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales, found.ids], [f"{base}.scale"], f"{base}.gather_scale"),
        helper.make_node("Unsqueeze", [f"{base}.scale", last], [f"{base}.scales"], f"{base}.unsqueeze"),
        helper.make_node("Mul", [f"{base}.float", f"{base}.scales"], [found.output], f"{base}.mul"),
    ]


def _shared_rows(graph: GraphWeights, found: Lookup, values: str, scales: str, base: str) -> Iterator[NodeProto]:
    """The matrix is stored once, as the product wants it: [C, V]; an embedding is a column of it."""
    width = graph.shape(found.name)[1]
    flat = graph.add("reduced.flat", np.array([-1], np.int64))
    size = graph.add(f"reduced.width_{width}", np.array([width], np.int64))
    yield helper.make_node("Reshape", [found.ids, flat], [f"{base}.ids"], f"{base}.flatten")
    yield helper.make_node("Gather", [values, f"{base}.ids"], [f"{base}.int8"], f"{base}.gather", axis=1)
    yield helper.make_node("Cast", [f"{base}.int8"], [f"{base}.float"], f"{base}.cast", to=TensorProto.FLOAT)
    yield helper.make_node("Gather", [scales, f"{base}.ids"], [f"{base}.scale"], f"{base}.gather_scale")
    yield helper.make_node("Mul", [f"{base}.float", f"{base}.scale"], [f"{base}.columns"], f"{base}.mul")
    yield helper.make_node("Transpose", [f"{base}.columns"], [f"{base}.rows"], f"{base}.transpose", perm=[1, 0])
    yield helper.make_node("Shape", [found.ids], [f"{base}.shape"], f"{base}.shape_of")
    yield helper.make_node("Concat", [f"{base}.shape", size], [f"{base}.target"], f"{base}.concat", axis=0)
    yield helper.make_node("Reshape", [f"{base}.rows", f"{base}.target"], [found.output], f"{base}.unflatten")


def _block_product(graph: GraphWeights, found: Product, bits: int) -> list[NodeProto]:
    values, scales = _add_blocks(graph, found.name, bits, transpose=not found.transposed)
    shape = graph.shape(found.name)
    columns, length = shape if found.transposed else shape[::-1]
    inputs = [found.x, values, scales, *(("", "", found.bias) if found.bias else ())]
    settings: dict[str, Any] = {"K": length, "N": columns, "bits": bits, "block_size": _block(length, bits)}
    settings["accuracy_level"] = _ROUNDED_ACTIVATIONS
    return [helper.make_node(BLOCKS, inputs, [found.output], f"{found.name}.product", domain=MICROSOFT, **settings)]


def _block_lookup(graph: GraphWeights, found: Lookup, bits: int) -> list[NodeProto]:
    rows, width = graph.shape(found.name)
    block = _block(width, bits)
    if width % block:
        # The operator wants whole blocks; the embedding stays as it is, beside the product's blocks.
        return [helper.make_node("Gather", [found.name, found.ids], [found.output], f"{found.output}.gather")]
    values, scales = _add_blocks(graph, found.name, bits, transpose=False)
    shape = graph.add(f"reduced.rows_{rows}", np.array([rows, -1], np.int64))
    settings: dict[str, Any] = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    inputs, name = [f"{values}.{found.output}", found.ids, scales], f"{found.output}.gather"
    return [
        # The engine folds this when it loads the graph; on the disk the matrix is there once.
        helper.make_node("Reshape", [values, shape], [f"{values}.{found.output}"], f"{name}.matrix"),
        helper.make_node("GatherBlockQuantized", inputs, [found.output], name, domain=MICROSOFT, **settings),
    ]


def _add_blocks(graph: GraphWeights, name: str, bits: int, transpose: bool) -> tuple[str, str]:
    values, scales = f"{name}.blocks{bits}", f"{name}.scales{bits}"
    if not graph.is_new(values):
        weights: NDArray[Any] = graph.read(name)
        rows = np.ascontiguousarray(weights.T) if transpose else weights
        made = by_block(rows, bits, _block(rows.shape[1], bits))
        graph.add(values, made.values)
        graph.add(scales, made.scales)
    return values, scales


def _block(length: int, bits: int) -> int:
    """The largest block that a row of that length holds whole; where none does, the last block is filled up."""
    return next((size for size in (128, 64, 32, 16) if size <= _BLOCK[bits] and not length % size), 32)
