"""How the operators of a graph make shapes of shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlrt.device_graph.model import Dim, Model, Shape
from vlrt.device_graph.nodes import Node
from vlrt.device_graph.shapes import Shapes, multiplied


def infer(model: Model) -> Shapes:
    """The shapes of a graph's tensors, followed from its inputs as far as they can be known."""
    known = Shapes(model)
    for node in model.nodes:
        rule, value = _RULES.get(node.kind), _VALUES.get(node.kind)
        if rule is not None:
            for name, shape in zip(node.outputs, rule(known, node)):
                known.learn(name, shape)
        if value is not None:
            known.learn_value(node.outputs[0], value(known, node))
    return known


_Shapes = Sequence[Shape | None]


def _same(at: int = 0) -> Callable[[Shapes, Node], _Shapes]:
    return lambda known, node: [known.get(node.input(at))]


def _attended(known: Shapes, node: Node) -> _Shapes:
    """Attention's result, whose width is the values'; nothing is said of queries, keys and values in one tensor."""
    shape, values = known.get(node.inputs[0]), known.get(node.input(2))
    if shape is None or values is None or len(shape) != 3 or len(values) != 3:
        return [None]
    equal_heads = node.whole("kv_num_heads", node.whole("num_heads", 1)) == node.whole("num_heads", 1)
    return [(*shape[:2], values[2])] if equal_heads else [shape]


def _elementwise(known: Shapes, node: Node) -> _Shapes:
    return [known.broadcast(*(known.get(name) for name in node.inputs if name))]


def _product(known: Shapes, node: Node) -> _Shapes:
    left, right = known.get(node.input(0)), known.get(node.input(1))
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return [None]
    if node.whole("transBatchA", 0) or node.whole("transBatchB", 0):
        return [None]
    rows = left[-1] if node.whole("transA", 0) else left[-2]
    columns = right[-2] if node.whole("transB", 0) else right[-1]
    leading = known.broadcast(left[:-2], right[:-2])
    return [None if leading is None else (*leading, rows, columns)]


def _transposed(known: Shapes, node: Node) -> _Shapes:
    shape, order = known.get(node.inputs[0]), node.wholes("perm")
    if shape is None:
        return [None]
    order = order if order is not None else tuple(reversed(range(len(shape))))
    return [tuple(shape[axis] for axis in order)]


def _reshaped(known: Shapes, node: Node) -> _Shapes:
    target = known.value(node.inputs[1])
    shape = known.get(node.inputs[0])
    return [None if target is None else known.reshaped(shape, target, bool(node.whole("allowzero", 0)))]


def _expanded(known: Shapes, node: Node) -> _Shapes:
    return [known.broadcast(known.get(node.inputs[0]), known.value(node.inputs[1]))]


def _joined(known: Shapes, node: Node) -> _Shapes:
    shapes = [known.get(name) for name in node.inputs]
    first = shapes[0]
    if first is None or any(shape is None or len(shape) != len(first) for shape in shapes):
        return [None]
    axis = node.whole("axis", 0) % len(first)
    sizes = [shape[axis] for shape in shapes if shape is not None]
    numbers = [size for size in sizes if isinstance(size, int)]
    total: Dim = sum(numbers) if len(numbers) == len(sizes) else known.unknown()
    return [(*first[:axis], total, *first[axis + 1 :])]


def _parted(known: Shapes, node: Node) -> _Shapes:
    shape = known.get(node.inputs[0])
    if shape is None:
        return [None]
    axis, count = node.whole("axis", 0) % len(shape), len(node.outputs)
    sizes = known.value(node.input(1)) if node.input(1) else None
    whole = shape[axis]
    if sizes is None and not node.input(1) and isinstance(whole, int) and whole % count == 0:
        sizes = (whole // count,) * count
    if sizes is None or len(sizes) != count:
        sizes = tuple(known.unknown() for _ in node.outputs)
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _gathered(known: Shapes, node: Node) -> _Shapes:
    shape, places = known.get(node.inputs[0]), known.get(node.inputs[1])
    if not shape or places is None:
        return [None]
    axis = node.whole("axis", 0) % len(shape)
    return [(*shape[:axis], *places, *shape[axis + 1 :])]


def _axes(known: Shapes, node: Node) -> list[int] | None:
    axes = known.value(node.input(1)) if node.input(1) else None
    return None if axes is None or any(isinstance(axis, str) for axis in axes) else [int(axis) for axis in axes]


def _unsqueezed(known: Shapes, node: Node) -> _Shapes:
    shape, axes = known.get(node.inputs[0]), _axes(known, node)
    if shape is None or axes is None:
        return [None]
    rank, rest = len(shape) + len(axes), iter(shape)
    new = {axis % rank for axis in axes}
    return [tuple(1 if axis in new else next(rest) for axis in range(rank))]


def _squeezed(known: Shapes, node: Node) -> _Shapes:
    shape, axes = known.get(node.inputs[0]), _axes(known, node)
    if shape is None or axes is None:
        return [None]
    gone = {axis % len(shape) for axis in axes}
    return [tuple(size for axis, size in enumerate(shape) if axis not in gone)]


def _sliced(known: Shapes, node: Node) -> _Shapes:
    """A slice from the start of axes; of one that ends where a name says, that name is taken to lie within the axis.

    Should it not, whoever adds the slice to a tensor of that size fails with or without us.
    """
    shape, starts, ends = known.get(node.inputs[0]), known.value(node.inputs[1]), known.value(node.inputs[2])
    axes = known.value(node.input(3)) if node.input(3) else None
    steps = known.value(node.input(4)) if node.input(4) else (1,)
    if shape is None or axes is None or starts is None or ends is None or set(steps or ()) != {1}:
        return [None]
    sizes = list(shape)
    for axis, start, end in zip(axes, starts, ends):
        if isinstance(axis, str):
            return [None]
        sizes[int(axis)] = _extent(shape[int(axis)], start, end) or known.unknown()
    return [tuple(sizes)]


def _extent(size: Dim, start: Dim, end: Dim) -> Dim | None:
    if isinstance(end, str):
        return end if start == 0 and size != 1 else None
    if isinstance(size, str) or isinstance(start, str):
        return None
    return len(range(size)[start:end])


def _shape_of(known: Shapes, node: Node) -> _Shapes:
    value = _shape_value(known, node)
    return [None if value is None else (len(value),)]


def _channels(known: Shapes, node: Node) -> _Shapes:
    """A convolution's result; its extents are left open."""
    shape, weight = known.get(node.inputs[0]), known.get(node.inputs[1])
    if shape is None or weight is None:
        return [None]
    return [(shape[0], weight[0], *(known.unknown() for _ in shape[2:]))]


def _shape_value(known: Shapes, node: Node) -> tuple[Dim, ...] | None:
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


def _product_value(known: Shapes, node: Node) -> tuple[Dim, ...] | None:
    parts = [known.value(name) for name in node.inputs]
    if any(part is None or len(part) != 1 for part in parts):
        return None
    return (multiplied([part[0] for part in parts if part]),)


_SAME = (
    *(
        "Abs",
        "Cast",
        "Clip",
        "Erf",
        "Exp",
        "Gelu",
        "Identity",
        "Neg",
        "Not",
        "Relu",
        "Sigmoid",
        "Softmax",
        "Sqrt",
        "Tanh",
    ),
    *("Tanh", "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
    *(
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "DynamicQuantizeLinear",
        "QuantizeLinear",
        "DequantizeLinear",
    ),
    *(
        f"com.microsoft.{name}"
        for name in ("FastGelu", "Gelu", "QuickGelu", "RotaryEmbedding", "SkipLayerNormalization")
    ),
    "com.microsoft.SkipSimplifiedLayerNormalization",
    "com.microsoft.nchwc.ReorderOutput",
)
_ELEMENTWISE = (
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Or"),
    *("Pow", "Sub", "Where", "com.microsoft.BiasGelu"),
)
_PRODUCTS = (
    *("Gemm", "MatMul", "MatMulInteger"),
    *(
        f"com.microsoft.{name}"
        for name in ("DynamicQuantizeMatMul", "FusedGemm", "FusedMatMul", "MatMulIntegerToFloat")
    ),
)

_RULES: dict[str, Callable[[Shapes, Node], _Shapes]] = {
    **dict.fromkeys(_SAME, _same()),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(("Conv", "com.microsoft.FusedConv", "com.microsoft.nchwc.Conv"), _channels),
    **dict.fromkeys(("com.microsoft.GroupQueryAttention", "com.microsoft.MultiHeadAttention"), _attended),
    "Transpose": _transposed,
    "Reshape": _reshaped,
    "Expand": _expanded,
    "Concat": _joined,
    "Split": _parted,
    "Gather": _gathered,
    "GatherElements": _same(1),
    "Slice": _sliced,
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Shape": _shape_of,
}
"""Operator -> the shapes of what it gives out; one that gives out several may leave the last ones open."""

_VALUES: dict[str, Callable[[Shapes, Node], tuple[Dim, ...] | None]] = {
    "Shape": _shape_value,
    "Concat": _joined_value,
    "Gather": _picked_value,
    "Slice": _sliced_value,
    "Mul": _product_value,
    **dict.fromkeys(("Cast", "Unsqueeze", "Squeeze", "Identity"), _value_kept),
}
