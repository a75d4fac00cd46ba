"""Products with constant matrices become our operators `Linear` and `LinearInt8`, their weights packed for them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from vlrt.device_graph.epilogue import absorb
from vlrt.device_graph.model import DOMAIN, Model
from vlrt.device_graph.nodes import Node, Value
from vlrt.device_graph.packing import pack_bytes, pack_floats, packed_bytes_name, sums_of_columns
from vlrt.device_graph.products import LINEAR, Product, find_product
from vlrt.device_graph.shapes import Shapes
from vlrt.device_graph.tensors import Array, new_tensor


def replace_products(model: Model, shapes: Shapes, operators: Collection[str]) -> None:
    """Puts our operators in the place of products and of what follows them.

    Args:
        model: the graph, which is changed.
        shapes: of its tensors.
        operators: those that this processor has.
    """
    for node in model.nodes:
        product = find_product(model, node)
        if product is not None and product.operator in operators:
            absorb(model, shapes, product)
            model.replace(product.nodes, _operator(model, product))


def _operator(model: Model, product: Product) -> Node:
    weights = _floats(model, product) if product.operator == LINEAR else _bytes(model, product)
    inputs = [product.x, *weights, _bias(model, product), product.residual]
    while not inputs[-1]:
        inputs.pop()
    attributes: dict[str, Value] = {"inner": product.inner, "columns": product.columns}
    attributes["activation"] = product.activation
    return Node(product.operator, DOMAIN, tuple(inputs), (product.output,), attributes)


def _floats(model: Model, product: Product) -> list[str]:
    name = f"{product.weight}.{'rows' if product.transposed else 'columns'}_packed"
    return [model.add(pack_floats(name, _constant(model, product.weight), product.transposed))]


def _bytes(model: Model, product: Product) -> list[str]:
    name, values = product.weight, _constant(model, product.weight)
    packed, sums = packed_bytes_name(name), f"{name}.sums"
    if packed not in model.tensors:
        model.add(pack_bytes(packed, values))
        model.add(new_tensor(sums, sums_of_columns(values)))
    return [packed, _row(model, product.scales, product.columns), sums]


def _bias(model: Model, product: Product) -> str:
    return product.bias and _row(model, product.bias, product.columns)


def _row(model: Model, name: str, columns: int) -> str:
    """A constant with a number for each column, as a tensor of one axis."""
    values = _constant(model, name)
    if values.shape == (columns,):
        return name
    return model.add(new_tensor(f"{name}.row_{columns}", np.broadcast_to(values.reshape(-1), columns).copy()))


def _constant(model: Model, name: str) -> Array:
    values = model.constant(name)
    if values is None:
        raise ValueError(f"`{name}` is not a constant")
    return values
