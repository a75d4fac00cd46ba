"""onnxruntime's attention to a cache takes queries, keys and values in one tensor, as one product gives them."""

from __future__ import annotations

from vlrt.device_graph.model import Model
from vlrt.device_graph.nodes import Node
from vlrt.device_graph.shapes import Shapes

_PARTS = 3


def join_queries(model: Model, shapes: Shapes) -> None:
    """Removes the `Split` between a product and the `GroupQueryAttention` that alone reads its parts, in their order.

    Args:
        model: the graph, which is changed.
        shapes: of its tensors.
    """
    for node in model.nodes:
        split = model.producer(node.input(0)) if node.kind == "com.microsoft.GroupQueryAttention" else None
        if split is not None and split.kind == "Split" and _are_joined(model, shapes, split, node):
            inputs = (split.inputs[0], "", "", *node.inputs[_PARTS:])
            model.replace([split, node], Node(node.op_type, node.domain, inputs, node.outputs, node.attributes))


def _are_joined(model: Model, shapes: Shapes, split: Node, node: Node) -> bool:
    whole = shapes.get(split.inputs[0])
    if split.outputs != node.inputs[:_PARTS] or whole is None or len(whole) != _PARTS:
        return False
    if split.whole("axis", 0) not in (2, -1) or any(model.sole_reader(name) is not node for name in split.outputs):
        return False
    heads, of_keys = node.whole("num_heads", 0), node.whole("kv_num_heads", 0)
    widths = [(shapes.get(name) or ("",))[-1] for name in split.outputs]
    if heads < 1 or of_keys < 1 or not all(isinstance(width, int) for width in widths):
        return False
    query, key, value = (int(width) for width in widths)
    return key == value and query % heads == 0 and query * of_keys == key * heads
