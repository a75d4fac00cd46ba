"""Attention in a graph becomes our operator `Attention`; the transpositions around it become its layouts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vlrt.device_graph.model import DOMAIN, Dim, Model, Shape
from vlrt.device_graph.nodes import Node, Value
from vlrt.device_graph.shapes import Shapes
from vlrt.device_graph.tensors import FLOAT

ATTENTION = "Attention"

_JOINED = "bt(hd)"
_LAYOUTS = ("bhtd", "bhdt", "bthd")
"""Orders of batch, head, token and dimension that our operator reads and writes where they lie, beside `_JOINED`."""

_FROM_BYTES = ("com.microsoft.DynamicQuantizeMatMul", "com.microsoft.MatMulIntegerToFloat", "vlrt.EmbedInt8")
"""Operators that make float32 of bytes."""

_TYPED_BY_SECOND = ("Where", "DequantizeLinear", "com.microsoft.DequantizeLinear")

_MOST_PARTS = 9
"""Parts of one tensor that our operator tells apart."""

_PRODUCTS = ("MatMul", "com.microsoft.FusedMatMul")


@dataclass(frozen=True)
class _Side:
    """A tensor on one side of attention, in which layout."""

    name: str
    layout: str


@dataclass(frozen=True)
class _Scores:
    """`scale * Q K^T + mask`, and the nodes that compute it."""

    nodes: tuple[Node, ...]
    query: _Side
    key: _Side
    scale: float
    mask: str = ""


def replace_attention(model: Model, shapes: Shapes) -> None:
    """Puts our operator in the place of attention, written out or as onnxruntime's own operator.

    Args:
        model: the graph, which is changed.
        shapes: of its tensors.
    """
    for node in model.nodes:
        if node.kind == "Softmax":
            _replace_written_out(model, shapes, node)
        elif node.kind == "com.microsoft.MultiHeadAttention":
            _replace_operator(model, shapes, node)


def _replace_written_out(model: Model, shapes: Shapes, softmax: Node) -> None:
    shape, axis = shapes.get(softmax.inputs[0]), softmax.whole("axis", -1)
    product = model.sole_reader(softmax.outputs[0])
    if shape is None or len(shape) != 4 or product is None or product.kind not in _PRODUCTS:
        return
    if not _is_single(model, softmax.inputs[0]):
        return
    over_rows = axis in (-2, 2)  # the scores are transposed: a row for each key
    if not over_rows and axis not in (-1, 3):
        return
    scores = _scores(model, shapes, softmax, over_rows)
    sides = _values(product, softmax.outputs[0], over_rows)
    if scores is None or sides is None or not _fit(shapes, scores, sides[0]):
        return
    nodes = [*scores.nodes, softmax, product]
    after, layout = _absorb_after(model, shapes, product.outputs[0], sides[1])
    heads = _sizes(shapes, scores.query)["h"]
    if isinstance(heads, int):
        value, out = _absorb_before(model, shapes, sides[0]), _Side((nodes + after)[-1].outputs[0], layout)
        query, key = (_absorb_before(model, shapes, side) for side in (scores.query, scores.key))
        rows = None if scores.mask else _rows(model, shapes, query, out)
        if rows is not None:
            after, query, out = [*after, rows[0]], rows[1], rows[2]
        model.replace(nodes + after, _operator(replace(scores, query=query, key=key), value, out, heads))


def _is_single(model: Model, name: str) -> bool:
    """Whether a tensor is in float32, as far as that can be followed back: through what operators read first."""
    while True:
        tensor, node = model.tensors.get(name), model.producer(name)
        if node is None:
            return (model.elements.get(name, 0) if tensor is None else tensor.element) == FLOAT
        if node.kind == "Cast":
            return node.whole("to", 0) == FLOAT
        if node.kind in _FROM_BYTES:
            return True
        name = node.input(1 if node.kind in _TYPED_BY_SECOND else 0)


def _operator(scores: _Scores, value: _Side, out: _Side, heads: int) -> Node:
    inputs = (scores.query.name, scores.key.name, value.name, *((scores.mask,) if scores.mask else ()))
    attributes: dict[str, Value] = {"scale": float(scores.scale), "heads": heads}
    for what, side in (("query", scores.query), ("key", scores.key), ("value", value), ("output", out)):
        attributes[f"{what}_layout"] = side.layout
    return Node(ATTENTION, DOMAIN, inputs, (out.name,), attributes)


def _scores(model: Model, shapes: Shapes, softmax: Node, over_rows: bool) -> _Scores | None:
    """What a softmax is taken of, if nothing else reads it and it is products of queries and keys."""
    name, scale, mask = softmax.inputs[0], 1.0, ""
    nodes: list[Node] = []
    while True:
        node = model.producer(name)
        if node is None or model.sole_reader(name) is None:
            return None
        nodes.insert(0, node)
        if node.kind in _PRODUCTS:
            break
        factor = _factor(model, node)
        if factor is not None:
            name, scale = factor[0], scale * factor[1]
        elif node.kind == "Add" and not mask and scale == 1.0 and not over_rows:
            at = _masked(model, shapes, node)
            if at is None:
                return None
            name, mask = node.inputs[at], node.inputs[1 - at]
        else:
            return None
    product = nodes[0]
    if product.whole("transBatchA", 0) or product.whole("transBatchB", 0):
        return None
    left = _Side(product.inputs[0], "bhdt" if product.whole("transA", 0) else "bhtd")
    right = _Side(product.inputs[1], "bhtd" if product.whole("transB", 0) else "bhdt")
    query, key = (right, left) if over_rows else (left, right)
    return _Scores(tuple(nodes), query, key, scale * product.number("alpha", 1.0), mask)


def _factor(model: Model, node: Node) -> tuple[str, float] | None:
    """Name of what a node multiplies with one constant number, and that number."""
    if node.kind not in ("Mul", "Div"):
        return None
    for at in (1, 0):
        number = model.constant(node.inputs[at])
        if number is not None and number.size == 1 and number.ndim <= 4 and number.dtype.kind == "f":
            value = float(number.reshape(-1)[0])
            if node.kind == "Mul":
                return node.inputs[1 - at], value
            return (node.inputs[0], 1.0 / value) if at == 1 and value else None
    return None


def _masked(model: Model, shapes: Shapes, add: Node) -> int | None:
    """Which input of an `Add` are scores; the other one must be a mask that surely broadcasts to them."""
    for at in (0, 1):
        node = model.producer(add.inputs[at])
        if node is None or not (node.kind in _PRODUCTS or _factor(model, node) is not None):
            continue
        ours, mask = shapes.get(add.inputs[at]), shapes.get(add.inputs[1 - at])
        if ours is None or mask is None or len(mask) > len(ours):
            continue
        if all(size in (1, full) for size, full in zip(reversed(mask), reversed(ours))):
            return at
    return None


def _values(product: Node, weights: str, over_rows: bool) -> tuple[_Side, _Side] | None:
    """The values that softmax's weights multiply, and the result."""
    if product.number("alpha", 1.0) != 1.0 or product.whole("transBatchA", 0) or product.whole("transBatchB", 0):
        return None
    left_turned, right_turned = bool(product.whole("transA", 0)), bool(product.whole("transB", 0))
    out = product.outputs[0]
    if product.inputs[0] == weights and left_turned == over_rows:
        return _Side(product.inputs[1], "bhdt" if right_turned else "bhtd"), _Side(out, "bhtd")
    if product.inputs[1] == weights and right_turned != over_rows:
        return _Side(product.inputs[0], "bhtd" if left_turned else "bhdt"), _Side(out, "bhdt")
    return None


def _sizes(shapes: Shapes, side: _Side) -> dict[str, Dim]:
    """Sizes of a tensor's axes by their letters; none where its shape is not known."""
    shape = shapes.get(side.name)
    return dict(zip(side.layout, shape)) if shape is not None and len(shape) == 4 else {}


def _fit(shapes: Shapes, scores: _Scores, value: _Side) -> bool:
    """Whether the sizes agree: keys and values have the queries' batch and heads, or one for all."""
    query, key, values = (_sizes(shapes, side) for side in (scores.query, scores.key, value))
    if not (query and key and values) or query["d"] != key["d"] or key["t"] != values["t"]:
        return False
    return all(side[axis] in (1, query[axis]) for side in (key, values) for axis in "bh")


def _absorb_before(model: Model, shapes: Shapes, side: _Side) -> _Side:
    """The tensor that a side is a transposed or parted view of, as long as our operator can read that."""
    while True:
        node = model.producer(side.name)
        if node is None:
            return side
        order = node.wholes("perm")
        if node.kind == "Transpose" and order is not None and len(order) == 4:
            source = "".join(side.layout[order.index(axis)] for axis in range(4))
            if source not in _LAYOUTS:
                return side
            side = _Side(node.inputs[0], source)
        elif node.kind == "Reshape" and _is_joined(side.layout, shapes.get(node.inputs[0]), shapes.get(side.name)):
            return _whole(model, shapes, _Side(node.inputs[0], _JOINED))
        else:
            return side


def _whole(model: Model, shapes: Shapes, side: _Side) -> _Side:
    """The tensor that a side is one of several equal parts of, as a product of queries, keys and values gives them."""
    node = model.producer(side.name)
    if node is None or node.kind != "Split" or not 1 < len(node.outputs) <= _MOST_PARTS:
        return side
    parts = {shapes.get(name) for name in node.outputs}
    if node.whole("axis", 0) not in (2, -1) or len(parts) != 1 or not isinstance((parts.pop() or ("",))[-1], int):
        return side
    return _Side(node.inputs[0], f"{_JOINED} {node.outputs.index(side.name) + 1}/{len(node.outputs)}")


def _absorb_after(model: Model, shapes: Shapes, name: str, side: _Side) -> tuple[list[Node], str]:
    """The nodes that only bring a result into another order, which our operator can write at once; and that order."""
    nodes: list[Node] = []
    layout = side.layout
    while (node := model.sole_reader(name)) is not None and node.inputs[0] == name:
        order = node.wholes("perm")
        if node.kind == "Transpose" and order is not None and len(order) == 4:
            new = "".join(layout[axis] for axis in order)
            if new not in _LAYOUTS:
                break
        elif node.kind == "Reshape" and _is_joined(layout, shapes.get(node.outputs[0]), shapes.get(name)):
            new = _JOINED
        else:
            break
        nodes.append(node)
        name, layout = node.outputs[0], new
    return nodes, layout


def _rows(model: Model, shapes: Shapes, query: _Side, out: _Side) -> tuple[Node, _Side, _Side] | None:
    """Queries and result before and behind the reshapes that group the rows which ask the same memory.

    Our operator groups them itself, by the batch of the memory, which is that of the grouped queries.
    """
    before, behind = model.producer(query.name), model.sole_reader(out.name)
    if before is None or behind is None or before.kind != "Reshape" or behind.kind != "Reshape":
        return None
    if query.layout != "bthd" or out.layout != "bthd" or behind.inputs[0] != out.name:
        return None
    asked, given = shapes.get(before.inputs[0]), shapes.get(behind.outputs[0])
    grouped, result = shapes.get(query.name), shapes.get(out.name)
    if not (asked and given and grouped and result) or len(asked) != 3 or asked[:2] != given[:2]:
        return None
    if not (_is_last(asked, grouped) and _is_last(given, result)):
        return None
    return behind, _Side(before.inputs[0], _JOINED), _Side(behind.outputs[0], _JOINED)


def _is_last(joined: Shape, parted: Shape) -> bool:
    """Whether the last axis of one is the last two of the other."""
    heads, width = parted[-2:]
    return isinstance(heads, int) and isinstance(width, int) and joined[-1] == heads * width


def _is_joined(layout: str, joined: Shape | None, parted: Shape | None) -> bool:
    """Whether the first shape is the second with heads and their dimensions in one axis."""
    if layout != "bthd" or joined is None or parted is None or len(joined) != 3 or len(parted) != 4:
        return False
    return joined[:2] == parted[:2] and _is_last(joined, parted)


_MOST_PLAIN = 3
"""Inputs of onnxruntime's operator that are plain attention's; what follows are biases, masks and caches."""


def _replace_operator(model: Model, shapes: Shapes, node: Node) -> None:
    """onnxruntime's `MultiHeadAttention` of three plain tensors `[batch, tokens, heads * dimension]`."""
    found = [shapes.get(name) for name in node.inputs[:_MOST_PLAIN]]
    heads, query = node.whole("num_heads", 0), found[0]
    plain = not any(node.inputs[_MOST_PLAIN:]) and not any(node.outputs[1:]) and not node.whole("unidirectional", 0)
    if not plain or heads < 1 or len(found) != _MOST_PLAIN or query is None or not isinstance(query[-1], int):
        return
    if any(shape is None or len(shape) != 3 for shape in found) or not _is_single(model, node.inputs[0]):
        return
    scale = node.number("scale", 0.0) or 1.0 / math.sqrt(query[-1] // heads)
    sides = [_whole(model, shapes, _Side(name, _JOINED)) for name in node.inputs[:_MOST_PLAIN]]
    out = _Side(node.outputs[0], _JOINED)
    model.replace([node], _operator(_Scores((), sides[0], sides[1], scale), sides[2], out, heads))
