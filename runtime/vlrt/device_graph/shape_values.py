"""How the operators of a graph make whole numbers of shapes, from which other shapes are made."""

from __future__ import annotations

import operator
from collections.abc import Callable

from vlrt.device_graph.model import Dim
from vlrt.device_graph.nodes import Node
from vlrt.device_graph.shapes import Shapes, expressed, multiplied
from vlrt.device_graph.sizes import computed


def value_of_shape(known: Shapes, node: Node) -> tuple[Dim, ...] | None:
    shape = known.get(node.inputs[0])
    if shape is None:
        return None
    end = node.whole("end", len(shape))
    return shape[node.whole("start", 0) : end]


def _joined_value(known: Shapes, node: Node) -> tuple[Dim, ...] | None:
    parts = [known.value(name) for name in node.inputs]
    return None if any(part is None for part in parts) else tuple(size for part in parts if part for size in part)


def _picked_value(known: Shapes, node: Node) -> tuple[Dim, ...] | None:
    value, places = known.value(node.inputs[0]), known.value(node.inputs[1])
    if value is None or places is None or any(isinstance(place, str) for place in places):
        return None
    return tuple(value[int(place)] for place in places if -len(value) <= int(place) < len(value))


def _sliced_value(known: Shapes, node: Node) -> tuple[Dim, ...] | None:
    value, bounds = known.value(node.inputs[0]), [known.value(name) for name in node.inputs[1:3]]
    if value is None or len(node.inputs) > 4 or not all(bound and isinstance(bound[0], int) for bound in bounds):
        return None
    first, last = (int(bound[0]) for bound in bounds if bound)
    return value[first:last]


def _value_kept(known: Shapes, node: Node) -> tuple[Dim, ...] | None:
    return known.value(node.inputs[0])


def _single_value(known: Shapes, node: Node) -> tuple[Dim, ...] | None:
    value = known.value(node.inputs[0])
    return value if value is not None and len(value) == 1 else None


def _computed(sign: str, compute: Callable[[int, int], int]) -> Callable[[Shapes, Node], tuple[Dim, ...] | None]:
    """Arithmetic of single numbers; where one has only a name, so has the result: how it is computed."""

    def rule(known: Shapes, node: Node) -> tuple[Dim, ...] | None:
        left, right = known.value(node.inputs[0]), known.value(node.inputs[1])
        if left is None or right is None or len(left) != 1 or len(right) != 1 or right == (0,):
            return None
        (first,), (second,) = left, right
        if isinstance(first, int) and isinstance(second, int):
            return (compute(first, second),)
        simple = computed(first, sign, second)
        return (simple or (multiplied([first, second]) if sign == "*" else expressed(first, sign, second)),)

    return rule


VALUES: dict[str, Callable[[Shapes, Node], tuple[Dim, ...] | None]] = {
    "Shape": value_of_shape,
    "Concat": _joined_value,
    "Gather": _picked_value,
    "Slice": _sliced_value,
    "Add": _computed("+", operator.add),
    "Sub": _computed("-", operator.sub),
    "Mul": _computed("*", operator.mul),
    "Div": _computed("/", lambda first, second: int(first / second)),  # towards zero, as ONNX divides
    "Reshape": _single_value,
    **dict.fromkeys(("Cast", "Unsqueeze", "Squeeze", "Identity"), _value_kept),
}
"""Operator -> the whole numbers that it gives out, where they describe a shape."""
