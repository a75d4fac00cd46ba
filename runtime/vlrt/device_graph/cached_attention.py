"""onnxruntime's attention to a cache becomes our operator, which extends and reads the cache in one."""

from __future__ import annotations

import math

from vlrt.device_graph.model import DOMAIN, Model
from vlrt.device_graph.nodes import Node
from vlrt.device_graph.shapes import Shapes

CACHED_ATTENTION = "CachedAttention"

_INPUTS, _OUTPUTS = 7, 3
"""Of the operator in its plain form: what follows are rotations, masks, biases and scores."""

_PAST = slice(3, 5)
_FREE = ("num_heads", "kv_num_heads", "scale", "qk_norm_epsilon")
_OFF = {"causal": 1, "local_window_size": -1, "k_quant_type": "NONE", "v_quant_type": "NONE"}
"""What attributes that we have no part in say where they ask for nothing; others are 0, or -1 for by default, then."""

_FLOAT = 1
_PARTS = 3
_KIND = "com.microsoft.GroupQueryAttention"


def join_queries(model: Model, shapes: Shapes) -> None:
    """Removes the `Split` between a product and the `GroupQueryAttention` that alone reads its parts, in their order.

    Args:
        model: the graph, which is changed.
        shapes: of its tensors.
    """
    for node in model.nodes:
        split = model.producer(node.input(0)) if node.kind == _KIND else None
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


def replace_cached_attention(model: Model, shapes: Shapes) -> None:
    """Puts our operator in the place of `GroupQueryAttention` in float32, without rotation, window and soft caps.

    Args:
        model: the graph, which is changed.
        shapes: of its tensors.
    """
    for node in model.nodes:
        if node.kind != _KIND or not _is_plain(model, node):
            continue
        keys, heads, key_heads = shapes.get(node.input(3)), node.whole("num_heads", 0), node.whole("kv_num_heads", 0)
        if keys is None or len(keys) != 4 or keys[1] != key_heads or not isinstance(keys[3], int):
            continue
        scale = node.number("scale", 0.0) or 1.0 / math.sqrt(keys[3])
        attributes = {"heads": heads, "key_heads": key_heads, "scale": scale}
        ours = Node(CACHED_ATTENTION, DOMAIN, node.inputs[:_INPUTS], node.outputs[:_OUTPUTS], attributes)
        model.replace([node], ours)


def _is_plain(model: Model, node: Node) -> bool:
    if any(node.inputs[_INPUTS:]) or any(node.outputs[_OUTPUTS:]) or not all(node.outputs[:_OUTPUTS]):
        return False
    if any(model.elements.get(name) != _FLOAT for name in node.inputs[_PAST]):
        return False
    others = {name: value for name, value in node.attributes.items() if name not in _FREE}
    return all(value == _OFF[name] if name in _OFF else value in (0, -1) for name, value in others.items())
