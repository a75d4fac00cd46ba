"""Convolutions of 3x3 and 1x1 become our operators `Conv3x3` and `Conv1x1`, with what is added to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlrt.device_graph.model import DOMAIN, Model
from vlrt.device_graph.nodes import Node, Value
from vlrt.device_graph.packing import pack_filters
from vlrt.device_graph.shapes import Shapes
from vlrt.device_graph.tensors import Array

CONV1X1, CONV3X3 = "Conv1x1", "Conv3x3"

_KINDS = ("Conv", "com.microsoft.FusedConv")

_WINDOWS = {(1, 1): (CONV1X1, 0), (3, 3): (CONV3X3, 1)}
"""Size of a window -> our operator, and the padding on every side with which each place of X is one of Y."""

_LEAST_CHANNELS = 32
"""With fewer channels on either side moving them about costs as much as multiplying them."""

_MOSTLY = 0.75
"""Share of a graph's filters, those that save products, from which onnxruntime keeps out of its blocked layout."""


@dataclass
class _Convolution:
    """`act(conv(X, W) + bias + shift + residual)`; the last of the nodes gives out the result."""

    nodes: list[Node]
    shift: str = ""
    residual: str = ""
    activation: str = "none"

    @property
    def output(self) -> str:
        return self.nodes[-1].outputs[0]


def replace_convolutions(model: Model, shapes: Shapes) -> None:
    """Puts our operators in the place of convolutions, and of additions and ReLU behind them.

    Args:
        model: the graph, which is changed.
        shapes: of its tensors.
    """
    for node in model.nodes:
        weight = _filters(model, node)
        if weight is None or node.text("activation", "Relu") != "Relu":
            continue
        found = _Convolution([node], residual=node.input(3))
        if "activation" in node.attributes:
            found.activation = "relu"
        while found.activation == "none" and _absorb(model, shapes, found):
            pass
        model.replace(found.nodes, _operator(model, found, weight))


def saves_most_products(model: Model) -> bool:
    """Whether most of a graph's convolutions, by their weights, are of 3x3 and among those that are replaced.

    onnxruntime's own layout of channels in blocks is as fast where no products are saved, and faster for small pictures
    (a ResNet's). It must be left out while a graph is optimised, since it hides the convolutions that are ours.
    """
    saving = others = 0
    for node in model.nodes:
        tensor = model.tensors.get(node.input(1)) if node.kind in _KINDS else None
        if tensor is None:
            continue
        weight = _filters(model, node)
        if weight is not None and _WINDOWS[weight.shape[2:]][0] == CONV3X3:
            saving += tensor.size
        else:
            others += tensor.size
    return saving > _MOSTLY * (saving + others)


def _filters(model: Model, node: Node) -> Array | None:
    """Filters of a convolution that our operator computes."""
    weight = model.constant(node.inputs[1]) if node.kind in _KINDS else None
    if weight is None or weight.dtype != np.float32 or weight.shape[2:] not in _WINDOWS:
        return None
    plain = node.whole("group", 1) == 1 and node.text("auto_pad", "NOTSET") == "NOTSET"
    steps = (node.wholes(name) for name in ("strides", "dilations"))
    padding = (_WINDOWS[weight.shape[2:]][1],) * 4
    if not plain or (node.wholes("pads") or (0,) * 4) != padding or any(step not in (None, (1, 1)) for step in steps):
        return None
    return weight if min(weight.shape[:2]) >= _LEAST_CHANNELS else None


def _absorb(model: Model, shapes: Shapes, found: _Convolution) -> bool:
    node = model.sole_reader(found.output)
    if node is None:
        return False
    if node.kind == "Relu":
        found.activation = "relu"
    elif node.kind != "Add" or not _takes(shapes, found, node):
        return False
    found.nodes.append(node)
    return True


def _takes(shapes: Shapes, found: _Convolution, add: Node) -> bool:
    """Whether what is added fits, as a residual or, a number for each channel of each picture, as a shift."""
    name = add.inputs[1] if add.inputs[0] == found.output else add.inputs[0]
    ours, theirs = shapes.get(found.output), shapes.get(name)
    if ours is None or theirs is None or len(ours) != 4:
        return False
    if not found.residual and ours == theirs:
        found.residual = name
    elif not found.shift and theirs == (*ours[:2], 1, 1):
        found.shift = name
    else:
        return False
    return True


def _operator(model: Model, found: _Convolution, weight: Array) -> Node:
    convolution = found.nodes[0]
    packed = model.add(pack_filters(f"{convolution.inputs[1]}.filters_packed", weight))
    inputs = [convolution.inputs[0], packed, convolution.input(2), found.shift, found.residual]
    while not inputs[-1]:
        inputs.pop()
    outputs, channels = weight.shape[:2]
    attributes: dict[str, Value] = {"in_channels": channels, "out_channels": outputs, "activation": found.activation}
    return Node(_WINDOWS[weight.shape[2:]][0], DOMAIN, tuple(inputs), (found.output,), attributes)
