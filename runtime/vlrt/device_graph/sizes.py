"""Sizes that depend on one size of an input: `factor * name + offset`, written in one way each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlrt.device_graph.model import Dim

_FORM = re.compile(r"(?:(\d+)\*)?([A-Za-z_]\w*)(?: ([+-]) (\d+))?")


@dataclass(frozen=True)
class LinearSize:
    """`factor * name + offset` of a size that is 1 at least."""

    factor: int
    name: str
    offset: int

    @property
    def dim(self) -> str:
        """The size as a name, the same for the same size."""
        whole = self.name if self.factor == 1 else f"{self.factor}*{self.name}"
        return whole if not self.offset else f"{whole} {'+' if self.offset > 0 else '-'} {abs(self.offset)}"

    def over(self, divisor: int) -> LinearSize | None:
        """The quotient, rounded down; `None` where it is no such form, or the dividend may be negative."""
        if self.factor % divisor or self.factor + self.offset < 0:
            return None
        return LinearSize(self.factor // divisor, self.name, self.offset // divisor)


def computed(first: Dim, sign: str, second: Dim) -> str | None:
    """The name of a sum, difference, product or quotient of a size and a number; `None` where it is no such form."""
    if sign in "+*" and isinstance(first, int):
        first, second = second, first
    size = linear(first)
    if size is None or not isinstance(second, int) or (sign in "*/" and second < 1):
        return None
    if sign == "/":
        quotient = size.over(second)
        return None if quotient is None else quotient.dim
    if sign == "*":
        return LinearSize(size.factor * second, size.name, size.offset * second).dim
    return LinearSize(size.factor, size.name, size.offset + (second if sign == "+" else -second)).dim


def linear(size: Dim) -> LinearSize | None:
    """A size taken apart; `None` where it is no such form."""
    found = _FORM.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        return None
    factor, name, sign, offset = found.groups()
    return LinearSize(int(factor or 1), name, int(f"{sign}{offset}") if offset else 0)


def behind_window(size: Dim, excess: int, step: int) -> Dim | None:
    """How often a window that moves by `step` fits a size; `excess`: padding less the window, on both sides."""
    if isinstance(size, int):
        return (size + excess) // step + 1
    if (step, excess) == (1, -1):
        return size
    moved = computed(computed(size, "+", excess) or 0, "/", step)
    return None if moved is None else computed(moved, "+", 1)
