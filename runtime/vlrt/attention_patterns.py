"""Which earlier cells of a picture's grid a cell attends to: the sparse attentions of DALL-E."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from vlrt.errors import BundleError

Kind = Literal["row", "column", "recent", "above_left", "around", "around_wrapped"]
_MOST_SEEN = 1 << 22
"""Pairs of cells that a pattern may have; a grid of 64 × 64 whose rows see everything above stays below."""


@dataclass(frozen=True)
class PatternSpec:
    """A sparse causal attention over a text and, behind it, a grid of cells in reading order.

    Every cell sees the text, itself, and earlier cells by kind: ``row`` those of its row, ``column`` those of its
    column, ``recent`` as many as a row has (its own row's and the last of the row above), ``above_left`` a square of
    `kernel` cells, `dilation` apart, whose lower right corner it is, ``around`` the square whose centre it is,
    ``around_wrapped`` the same on a grid whose opposite borders touch.

    Args:
        name: unique in its section; states and the step graph's length inputs refer to it.
        text: positions before the grid's first cell.
        grid: rows and columns.
        kernel: odd; for the squares only.
        dilation: for ``above_left`` only.

    Source: Ramesh et al. (arXiv 2102.12092), appendix B.1; the kinds as lucidrains/DALLE-pytorch 1.6 (row, column,
    above_left) and ai-forever/ru-dalle 1.1 (recent, column, around; around_wrapped in its version 2) have them.
    """

    name: str
    kind: Kind
    text: int
    grid: tuple[int, int]
    kernel: int = 1
    dilation: int = 1

    def __post_init__(self) -> None:
        rows, columns = self.grid
        sensible = rows > 0 and columns > 0 and rows * columns <= 1 << 16 and 0 < self.text <= 1 << 16
        if not self.name or not sensible:
            raise _refuse(f"pattern `{self.name}` has {self.text} positions before a grid of {list(self.grid)}")
        if self.kernel % 2 == 0 or not 0 < self.kernel < 256 or not 0 < self.dilation < 256:
            raise _refuse(f"pattern `{self.name}` has the kernel {self.kernel} with dilation {self.dilation}")
        most = {"row": columns, "column": rows, "recent": columns}.get(self.kind, self.kernel**2)
        if rows * columns * most > _MOST_SEEN:
            raise _refuse(f"pattern `{self.name}` sees {most} cells from each of {rows * columns}")

    @property
    def positions(self) -> int:
        """Of a cache that holds the text and what any one cell sees, itself included."""
        return self.text + max(map(len, self.visible())) + 1

    @property
    def waiting(self) -> int:
        """Cells that leave such a cache and come back, so that they wait elsewhere meanwhile."""
        visible = self.visible()
        return len({c for i, seen in enumerate(visible) for c in seen if c != i - 1 and c not in visible[i - 1]})

    def filled(self, length: int) -> int:
        """Positions of such a cache that are in use when `length` positions of the sequence are."""
        return length if length <= self.text else self.text + len(self.visible()[length - self.text - 1]) + 1

    def visible(self) -> tuple[tuple[int, ...], ...]:
        """For each cell in reading order the earlier cells it sees, ascending; its own is not among them."""
        return _visible(self)


@cache
def _visible(pattern: PatternSpec) -> tuple[tuple[int, ...], ...]:
    cells = pattern.grid[0] * pattern.grid[1]
    return tuple(tuple(sorted({c for c in _seen(pattern, cell) if c < cell})) for cell in range(cells))


def _seen(pattern: PatternSpec, cell: int) -> Iterator[int]:
    rows, columns = pattern.grid
    row, column = divmod(cell, columns)
    if pattern.kind == "row":
        yield from range(row * columns, cell)
    elif pattern.kind == "column":
        yield from range(column, cell, columns)
    elif pattern.kind == "recent":
        yield from range(max(0, cell - columns), cell)
    else:
        for down, right in _offsets(pattern):
            r, c = row + down, column + right
            if pattern.kind == "around_wrapped":
                r, c = r % rows, c % columns
            if 0 <= r < rows and 0 <= c < columns:
                yield r * columns + c


def _offsets(pattern: PatternSpec) -> Iterator[tuple[int, int]]:
    if pattern.kind == "above_left":
        steps = range(-(pattern.kernel - 1) * pattern.dilation, 1, pattern.dilation)
    else:
        steps = range(-(pattern.kernel // 2), pattern.kernel // 2 + 1)
    for down in steps:
        for right in steps:
            yield down, right


def _refuse(what: str) -> BundleError:
    return BundleError(f"decode section: {what}, which cannot be meant", "export the bundle again")
