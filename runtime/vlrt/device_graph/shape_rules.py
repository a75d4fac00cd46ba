"""How the operators of a graph make shapes of shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vlrt.device_graph.model import Dim, Model, Shape
from vlrt.device_graph.nodes import Node
from vlrt.device_graph.shape_values import VALUES, value_of_shape
from vlrt.device_graph.shapes import Shapes
from vlrt.device_graph.sizes import behind_window, computed


def infer(model: Model) -> Shapes:
    """The shapes of a graph's tensors, followed from its inputs as far as they can be known."""
    known = Shapes(model)
    for node in model.nodes:
        rule, value = _RULES.get(node.kind), VALUES.get(node.kind)
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


def _reordered(turn: Callable[[Shape], Shape]) -> Callable[[Shapes, Node], _Shapes]:
    """A picture in another order of memory, where the shape is told as `[N, C, H, W]`; plain ones may be turned."""

    def rule(known: Shapes, node: Node) -> _Shapes:
        shape, channels = known.get(node.inputs[0]), node.whole("channels", 0)
        if shape is not None and channels:  # the blocks may hold more
            shape = (shape[0], channels, *shape[2:])
        return [turn(shape) if shape is not None and node.whole("channels_last", 0) else shape]

    return rule


def _transposed(known: Shapes, node: Node) -> _Shapes:
    shape, order = known.get(node.inputs[0]), node.wholes("perm")
    if shape is None:
        return [None]
    order = order if order is not None else tuple(reversed(range(len(shape))))
    return [tuple(shape[axis] for axis in order)]


def _reshaped(known: Shapes, node: Node) -> _Shapes:
    target, shape, rank = known.value(node.inputs[1]), known.get(node.inputs[0]), known.get(node.inputs[1])
    if target is not None:
        return [known.reshaped(shape, target, bool(node.whole("allowzero", 0)))]
    return [tuple(known.unknown() for _ in range(rank[0])) if rank and isinstance(rank[0], int) else None]


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
    axes = known.value(node.input(1)) if node.input(1) else node.wholes("axes")
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
    if shape is None or (axes is None and any(isinstance(size, str) for size in shape)):
        return [None]
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    gone = {axis % len(shape) for axis in (ones if axes is None else axes)}
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
    value = value_of_shape(known, node)
    return [None if value is None else (len(value),)]


def _convolved(known: Shapes, node: Node) -> _Shapes:
    shape, weight = known.get(node.inputs[0]), known.get(node.input(1))
    if shape is None or weight is None:
        return [None]
    return [(shape[0], weight[0], *_extents(known, node, shape[2:], weight[2:]))]


def _pooled(known: Shapes, node: Node) -> _Shapes:
    shape, kernel = known.get(node.inputs[0]), node.wholes("kernel_shape")
    if shape is None or kernel is None:
        return [None]
    return [(*shape[:2], *_extents(known, node, shape[2:], kernel))]


def _extents(known: Shapes, node: Node, sizes: Shape, kernel: Shape) -> list[Dim]:
    """Extents behind a window that moves, of which only the plainest are followed."""
    rank = len(sizes)
    steps, spread = node.wholes("strides") or (1,) * rank, node.wholes("dilations") or (1,) * rank
    pads = node.wholes("pads") or (0,) * 2 * rank
    if node.text("auto_pad", "NOTSET") != "NOTSET" or node.whole("ceil_mode", 0):
        return [known.unknown() for _ in sizes]
    found: list[Dim] = []
    for at, (size, width) in enumerate(zip(sizes, kernel)):
        if isinstance(width, str):
            found.append(known.unknown())
            continue
        excess = pads[at] + pads[at + rank] - spread[at] * (width - 1) - 1
        found.append(behind_window(size, excess, steps[at]) or known.unknown())
    return found


def _resized(known: Shapes, node: Node) -> _Shapes:
    """A picture of another size; where it is not a whole multiple only channels and batch are followed."""
    shape, factors = known.get(node.inputs[0]), known.factors(node.input(2))
    if shape is None:
        return [None]
    if node.input(3) or len(factors) != len(shape):
        factors = (1, 1, *(0 for _ in shape[2:]))
    return [tuple(_times(size, factor) or known.unknown() for size, factor in zip(shape, factors))]


def _times(size: Dim, factor: int) -> Dim | None:
    if isinstance(size, int):
        return size * factor
    return size if factor == 1 else computed(size, "*", factor)


def _ranged(known: Shapes, node: Node) -> _Shapes:
    bounds = [known.value(name) for name in node.inputs]
    if bounds[0] != (0,) or bounds[2] != (1,) or bounds[1] is None:
        return [(known.unknown(),)]
    return [bounds[1]]


_SAME = (
    "Abs BatchNormalization Cast Clip Cos DequantizeLinear DynamicQuantizeLinear Erf Exp Gelu GroupNormalization "
    "Identity InstanceNormalization LayerNormalization Neg Not QuantizeLinear RMSNormalization Relu Sigmoid "
    "SimplifiedLayerNormalization Sin Softmax Sqrt Tanh Trilu com.microsoft.FastGelu com.microsoft.Gelu "
    "com.microsoft.GroupNorm com.microsoft.QuickGelu com.microsoft.RotaryEmbedding "
    "com.microsoft.SkipLayerNormalization com.microsoft.SkipSimplifiedLayerNormalization"
)
_ELEMENTWISE = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Where com.microsoft.BiasGelu"
)
_PRODUCTS = (
    "Gemm MatMul MatMulInteger com.microsoft.DynamicQuantizeMatMul com.microsoft.FusedGemm com.microsoft.FusedMatMul "
    "com.microsoft.MatMulIntegerToFloat"
)

_RULES: dict[str, Callable[[Shapes, Node], _Shapes]] = {
    **dict.fromkeys(_SAME.split(), _same()),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_PRODUCTS.split(), _product),
    **dict.fromkeys(("Conv", "com.microsoft.FusedConv", "com.microsoft.nchwc.Conv"), _convolved),
    **dict.fromkeys(("AveragePool", "MaxPool", "com.microsoft.nchwc.AveragePool"), _pooled),
    **dict.fromkeys(("Resize", "com.microsoft.nchwc.Upsample"), _resized),
    "Range": _ranged,
    **dict.fromkeys(("com.microsoft.GroupQueryAttention", "com.microsoft.MultiHeadAttention"), _attended),
    "com.microsoft.nchwc.ReorderInput": _reordered(lambda shape: (shape[0], shape[-1], *shape[1:-1])),
    "com.microsoft.nchwc.ReorderOutput": _reordered(lambda shape: (shape[0], *shape[2:], shape[1])),
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
