"""What follows a product and is computed with it: a bias, an activation, a residual."""

from __future__ import annotations

from vlrt.device_graph.model import Model
from vlrt.device_graph.nodes import Node
from vlrt.device_graph.products import Product, is_bias
from vlrt.device_graph.shapes import Shapes

_QUICK, _SILU = 1.702, 1.0
"""Factors of x in `x * sigmoid(factor * x)`: of the quick GELU and of SiLU."""


def absorb(model: Model, shapes: Shapes, product: Product) -> None:
    """Takes into a product what follows it, as far as nothing else reads what lies between."""
    while not product.residual:
        if not (_bias(model, shapes, product) or _activation(model, product) or _residual(model, shapes, product)):
            return


def _bias(model: Model, shapes: Shapes, product: Product) -> bool:
    add = model.sole_reader(product.output)
    if add is None or add.kind != "Add" or product.bias or product.activation != "none":
        return False
    name = _other(add, product.output)
    values, shape = model.constant(name), shapes.get(product.output)
    if values is None or not is_bias(values, product.columns) or (values.ndim > 1 and values.ndim > len(shape or ())):
        return False
    product.bias = name
    product.nodes.append(add)
    return True


def _activation(model: Model, product: Product) -> bool:
    if product.activation != "none":
        return False
    follows = _with_sigmoid(model, product.output)
    if follows:
        product.activation = "silu"
        product.nodes += follows
        return True
    node = model.sole_reader(product.output)
    if node is None or node.input(0) != product.output:
        return False
    activation = _name(node)
    if not activation or (node.input(1) and not _takes_bias(model, product, node.input(1))):
        return False
    product.activation = activation
    product.nodes.append(node)
    return True


def _takes_bias(model: Model, product: Product, bias: str) -> bool:
    if product.bias or not is_bias(model.constant(bias), product.columns):
        return False
    product.bias = bias
    return True


def _name(node: Node) -> str:
    """What our operators call the activation that a node computes; empty where it is none of theirs."""
    if node.kind in ("Gelu", "com.microsoft.Gelu"):
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(node.text("approximate", "none"), "")
    if node.kind == "com.microsoft.QuickGelu":
        alpha = node.number("alpha", _QUICK)
        return "quick_gelu" if abs(alpha - _QUICK) < 1e-6 else "silu" if alpha == _SILU else ""
    return {"Relu": "relu", "com.microsoft.BiasGelu": "gelu", "com.microsoft.FastGelu": "gelu_tanh"}.get(node.kind, "")


def _with_sigmoid(model: Model, name: str) -> list[Node]:
    """`Sigmoid` of a tensor and its multiplication with that tensor, if nothing else reads either."""
    readers = model.readers(name)
    sigmoid = next((node for node in readers if node.kind == "Sigmoid"), None)
    if len(readers) != 2 or sigmoid is None or name in model.outputs:
        return []
    product = model.sole_reader(sigmoid.outputs[0])
    same = product is not None and product.kind == "Mul" and set(product.inputs) == {name, sigmoid.outputs[0]}
    return [sigmoid, product] if product is not None and same and product in readers else []


def _residual(model: Model, shapes: Shapes, product: Product) -> bool:
    add = model.sole_reader(product.output)
    if add is None or add.kind != "Add":
        return False
    name = _other(add, product.output)
    ours, theirs = shapes.get(product.output), shapes.get(name)
    if ours is None or ours != theirs:
        return False
    product.residual = name
    product.nodes.append(add)
    return True


def _other(node: Node, name: str) -> str:
    return node.inputs[1] if node.inputs[0] == name else node.inputs[0]
