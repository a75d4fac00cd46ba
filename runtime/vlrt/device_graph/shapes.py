"""Shapes of a graph's tensors, as far as they are known.

An axis that nothing decides beforehand has a name; two axes of the same name have the same size in every run. That is
all that the patterns need: they ask whether two shapes are surely equal.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from vlrt.device_graph.model import Dim, Model, Shape

_TIMES = "·"
"""Between the names of axes that were joined into one."""

_LONGEST_VALUE = 16
"""Numbers in a tensor that is followed as somebody's shape."""


class Shapes:
    """Shapes by the names of tensors, first those that the file tells; `shape_rules.infer` adds what follows."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._fresh = itertools.count()
        self._known: dict[str, Shape] = {}
        self._values: dict[str, tuple[Dim, ...]] = {}
        for described in (model.described, model.inputs):
            self._known.update({name: shape for name, shape in described.items() if shape is not None})

    def get(self, name: str) -> Shape | None:
        """Shape of a tensor; `None` where even the number of its axes is not known."""
        tensor = self._model.tensors.get(name)
        return tensor.dims if tensor is not None else self._known.get(name)

    def value(self, name: str) -> tuple[Dim, ...] | None:
        """The whole numbers in a tensor of at most one axis, if all are known or have a name."""
        if name in self._values:
            return self._values[name]
        values = self._model.constant(name)
        if values is None or values.dtype.kind != "i" or values.ndim > 1 or values.size > _LONGEST_VALUE:
            return None
        return tuple(int(value) for value in values.reshape(-1))

    def factors(self, name: str) -> tuple[int, ...]:
        """The whole factors in a constant of floats; none where there is no such constant."""
        values = self._model.constant(name) if name else None
        if values is None or values.dtype.kind != "f" or values.ndim != 1 or (values % 1).any():
            return ()
        return tuple(int(value) for value in values)

    def learn(self, name: str, shape: Shape | None) -> None:
        """Notes the shape of a tensor, unless it has one."""
        if shape is not None and name and name not in self._known:
            self._known[name] = shape

    def learn_value(self, name: str, value: tuple[Dim, ...] | None) -> None:
        """Notes the whole numbers in a tensor."""
        if value is not None and len(value) <= _LONGEST_VALUE:
            self._values[name] = value

    def unknown(self) -> str:
        """A name for a size that nothing is known about."""
        return f"? {next(self._fresh)}"

    def broadcast(self, *shapes: Shape | None) -> Shape | None:
        """The shape of an elementwise operator's result."""
        known = [shape for shape in shapes if shape is not None]
        if len(known) != len(shapes):
            return None
        rank = max(map(len, known))
        columns = zip(*((1,) * (rank - len(shape)) + shape for shape in known))
        return tuple(self._join(set(column)) for column in columns)

    def _join(self, sizes: set[Dim]) -> Dim:
        sizes.discard(1)
        numbers = [size for size in sizes if isinstance(size, int)]
        if not sizes:
            return 1
        if numbers:
            return numbers[0]
        return sizes.pop() if len(sizes) == 1 else self.unknown()

    def reshaped(self, shape: Shape | None, target: Sequence[Dim], keeps_zero: bool) -> Shape:
        """The shape that `target` asks for, of a tensor of this shape."""
        if not keeps_zero:
            kept = shape or ()
            target = [(kept[at] if at < len(kept) else self.unknown()) if n == 0 else n for at, n in enumerate(target)]
        if -1 not in target:
            return tuple(target)
        rest = [size for size in target if size != -1]
        left = self.unknown() if shape is None else self._quotient(shape, rest)
        return tuple(left if size == -1 else size for size in target)

    def _quotient(self, whole: Sequence[Dim], parts: Sequence[Dim]) -> Dim:
        """What the sizes `whole` multiply to, over what `parts` do."""
        (number, names), (divisor, taken) = _factors(whole), _factors(parts)
        if divisor == 0 or number % divisor or taken - names:
            return self.unknown()
        return _joined(number // divisor, names - taken)


def multiplied(sizes: Sequence[Dim]) -> Dim:
    """The product of sizes."""
    return _joined(*_factors(sizes))


def expressed(first: Dim, sign: str, second: Dim) -> str:
    """A name for what is computed of two sizes."""
    return f"({first} {sign} {second})".replace(_TIMES, " * ")


def _joined(number: int, names: Counter[str]) -> Dim:
    if not names:
        return number
    return _TIMES.join((*([str(number)] if number != 1 else []), *sorted(names.elements())))


def _factors(sizes: Sequence[Dim]) -> tuple[int, Counter[str]]:
    number, names = 1, Counter[str]()
    for size in sizes:
        for factor in size.split(_TIMES) if isinstance(size, str) else [size]:
            if isinstance(factor, int) or factor.isdecimal():
                number *= int(factor)
            else:
                names[factor] += 1
    return number, names
