"""Layer norms over the last axis become our operator `LayerNorm`."""

from __future__ import annotations

import numpy as np

from vlrt.device_graph.model import DOMAIN, Model
from vlrt.device_graph.nodes import Node

LAYER_NORM = "LayerNorm"

_EPSILON = 1e-5


def replace_layer_norms(model: Model) -> None:
    """Puts our operator in the place of layer norms with a constant factor and summand.

    Args:
        model: the graph, which is changed; layer norms that are group norms were replaced before.
    """
    for node in model.nodes:
        if node.kind == "LayerNormalization" and node.whole("axis", -1) == -1 and not any(node.outputs[1:]):
            width = _width(model, node)
            if width:
                attributes = {"width": width, "epsilon": node.number("epsilon", _EPSILON)}
                model.replace([node], Node(LAYER_NORM, DOMAIN, node.inputs, node.outputs[:1], attributes))


def _width(model: Model, node: Node) -> int:
    """Numbers that the factor and the summand have each; 0 where they are no such constants."""
    values = [model.constant(node.input(place)) for place in (1, 2)]
    sizes = {array.shape if array is not None and array.dtype == np.float32 else () for array in values}
    (shape, *others) = sizes
    return int(shape[0]) if len(shape) == 1 and not others else 0
