"""Gated units with GELU, split, activated and multiplied, become our operator `GatedGelu`."""

from __future__ import annotations

from vlrt.device_graph.model import DOMAIN, Model
from vlrt.device_graph.nodes import Node
from vlrt.device_graph.shapes import Shapes

GATED_GELU = "GatedGelu"


def replace_gated_units(model: Model, shapes: Shapes) -> None:
    """Puts our operator in the place of `a * gelu(b)` where `a` and `b` are the halves of one tensor's last axis.

    Args:
        model: the graph, which is changed.
        shapes: of its tensors.
    """
    for node in model.nodes:
        if node.kind == "Split":
            _replace(model, shapes, node)


def _replace(model: Model, shapes: Shapes, split: Node) -> None:
    shape = shapes.get(split.inputs[0])
    if shape is None or len(split.outputs) != 2 or split.whole("axis", 0) not in (-1, len(shape) - 1):
        return
    left, right = (shapes.get(name) for name in split.outputs)
    if left is None or left != right or not isinstance(left[-1], int):
        return
    product, gelu = (model.sole_reader(name) for name in split.outputs)
    if product is None or gelu is None or product.kind != "Mul" or gelu.kind not in ("Gelu", "com.microsoft.Gelu"):
        return
    if gelu.text("approximate", "none") == "none" and model.sole_reader(gelu.outputs[0]) is product:
        nodes = [split, gelu, product]
        model.replace(nodes, Node(GATED_GELU, DOMAIN, (split.inputs[0],), (product.outputs[0],)))
