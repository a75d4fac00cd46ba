"""Group norms, written as layer norms of each group, become our operator `GroupNorm`."""

from __future__ import annotations

import numpy as np

from vlrt.device_graph.model import DOMAIN, Model
from vlrt.device_graph.nodes import Node, Value
from vlrt.device_graph.shapes import Shapes
from vlrt.device_graph.tensors import Array, new_tensor

GROUP_NORM = "GroupNorm"

_EPSILON = 1e-5
_GROUPED = 3
"""Axes of a tensor with its channels in groups: picture, group, what is in the group."""


def replace_group_norms(model: Model, shapes: Shapes) -> None:
    """Puts our operator in the place of layer norms over [N, groups, ...] that a factor and a summand follow.

    Args:
        model: the graph, which is changed.
        shapes: of its tensors.
    """
    for node in model.nodes:
        if node.kind == "LayerNormalization":
            _replace(model, shapes, node)


def _replace(model: Model, shapes: Shapes, norm: Node) -> None:
    parted = model.producer(norm.inputs[0])
    if parted is None or parted.kind != "Reshape" or not _is_plain(model, norm):
        return
    x = parted.inputs[0]
    whole, groups = shapes.get(x), shapes.get(norm.inputs[0])
    if whole is None or groups is None or len(groups) != _GROUPED or len(whole) < _GROUPED or whole[0] != groups[0]:
        return
    channels, count = whole[1], groups[1]
    if not isinstance(channels, int) or not isinstance(count, int) or count < 1 or channels % count:
        return
    joined = model.sole_reader(norm.outputs[0])
    if joined is None or joined.kind != "Reshape" or shapes.get(joined.outputs[0]) != whole:
        return
    factor, scale = _by_channel(model, joined.outputs[0], "Mul", channels, len(whole))
    summand, bias = _by_channel(model, factor.outputs[0], "Add", channels, len(whole)) if factor else (None, "")
    if factor is None or summand is None:
        return
    nodes = [norm, joined, factor, summand]
    activation = model.sole_reader(summand.outputs[0])
    silu = activation is not None and _is_silu(activation)
    if activation is not None and silu:
        nodes.append(activation)
    attributes: dict[str, Value] = {"channels": channels, "groups": count, "activation": "silu" if silu else "none"}
    attributes["epsilon"] = norm.number("epsilon", _EPSILON)
    inputs = (x, *(_flat(model, name) for name in (scale, bias)))
    model.replace(nodes, Node(GROUP_NORM, DOMAIN, inputs, (nodes[-1].outputs[0],), attributes))


def _is_plain(model: Model, norm: Node) -> bool:
    """Whether a layer norm is over the last axis, without factor and summand of its own."""
    factor = norm.inputs[1]
    maker = model.producer(factor)
    values = model.constant(maker.inputs[0] if maker is not None and maker.kind == "Expand" else factor)
    ones = values is not None and values.dtype == np.float32 and bool((values == 1).all())
    return ones and not norm.input(2) and not any(norm.outputs[1:]) and norm.whole("axis", -1) in (-1, _GROUPED - 1)


def _by_channel(model: Model, name: str, kind: str, channels: int, axes: int) -> tuple[Node | None, str]:
    """The node that alone reads `name` and takes it with one number for each channel, and the name of those."""
    node = model.sole_reader(name)
    if node is None or node.kind != kind:
        return None, ""
    other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
    values: Array | None = model.constant(other)
    expected = (channels, *(1 for _ in range(axes - 2)))
    fits = values is not None and values.dtype == np.float32 and values.shape in (expected, (1, *expected))
    return (node, other) if fits else (None, "")


def _is_silu(node: Node) -> bool:
    return node.kind == "com.microsoft.QuickGelu" and node.number("alpha", 0.0) == 1.0


def _flat(model: Model, name: str) -> str:
    values = model.constant(name)
    if values is None:
        raise ValueError(f"`{name}` is not a constant")
    return model.add(new_tensor(f"{name}.channels", np.ascontiguousarray(values.reshape(-1))))
