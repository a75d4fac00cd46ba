"""What a user asks of a bundle that draws pictures code by code, checked before any work is done."""

from __future__ import annotations

import difflib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vlrt.errors import UsageError
from vlrt.image import ImageLike

STAGE = "codes"
"""The only stage there is, as progress names it."""

_MOST = 1024
_LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class DrawRequest:
    """Options of drawing; `None` leaves them to the bundle.

    Args:
        seed: of the codes' draws, 0 to 2⁶⁴ − 1; drawn where `None`.
        count: pictures to return.
        candidates: pictures to draw; as many as are returned where `None`.
        keep: the best of the candidates, so many; `count` by another name.
        rank: bundle (folder or name) of a dual encoder whose cosine with the prompt says which are best; by the
            likelihood of their codes where `None`.
        complete: a photograph whose upper rows of codes are kept.
        rows: how many; 7 of 16 (as the paper has it) where `None`.
        guidance: scale of guidance on logits; 1 or less for none.
        temperature, top_k, top_p: of the draws.
        greedy: takes the likeliest code every time; one candidate only.
    """

    seed: int | None = None
    count: int = 1
    candidates: int | None = None
    keep: int | None = None
    rank: str | os.PathLike[str] | None = None
    complete: ImageLike | None = None
    rows: int | None = None
    guidance: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(2**32))
        if not 0 <= self.first_seed <= _LARGEST_SEED:
            raise UsageError(f"the seed {self.seed} does not fit 64 bits", f"0 to {_LARGEST_SEED}")
        for name in ("count", "candidates", "keep"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MOST:
                raise UsageError(f"`{name}` is {value}, expected 1 to {_MOST} pictures")
        if self.kept > self.drawn:
            what = f"{self.kept} pictures are to be kept of {self.drawn} candidates"
            raise UsageError(what, f"draw at least {self.kept} candidates, or keep fewer")
        if self.greedy and self.drawn > 1:
            raise UsageError(f"{self.drawn} candidates would all be the likeliest picture", "leave out `greedy`")
        if self.rows is not None and self.complete is None:
            raise UsageError("`rows` says how much of a photograph is kept, and there is none", "add `complete`")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> DrawRequest:
        """From options by name; `guidance` may stand under its only stage's name, ``codes``.

        Raises:
            UsageError: an unknown name (the nearest is given), or a value that cannot be meant.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean `{near[0]}`?" if near else "this bundle draws code by code, not by diffusion"
                raise UsageError(f"there is no option `{name}` here", hint)
        given = dict(options)
        if isinstance(given.get("guidance"), Mapping):
            given["guidance"] = _of_codes(given["guidance"])
        return cls(**given)

    @property
    def first_seed(self) -> int:
        """The seed."""
        return int(self.seed or 0)

    @property
    def kept(self) -> int:
        """Pictures to return."""
        return self.count if self.keep is None else self.keep

    @property
    def drawn(self) -> int:
        """Pictures to draw."""
        return self.kept if self.candidates is None else self.candidates

    def rows_of(self, grid: tuple[int, int]) -> int:
        """Rows of a photograph that are kept, of a grid of codes; 0 where nothing is completed.

        Raises:
            UsageError: nothing would be left to draw.
        """
        if self.complete is None:
            return 0
        rows = max(1, grid[0] * 7 // 16) if self.rows is None else self.rows
        if not 0 < rows < grid[0]:
            what = f"{rows} rows of the photograph are to be kept, the picture has {grid[0]}"
            raise UsageError(what, f"1 to {grid[0] - 1}")
        return rows

    def parameters(self) -> dict[str, Any]:
        """What makes the pictures again, JSON types only; a photograph that was no file is left out."""
        values: dict[str, Any] = {"seed": self.first_seed, "candidates": self.drawn, "keep": self.kept}
        for name in ("guidance", "temperature", "top_k", "top_p", "rows"):
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        for name in ("rank", "complete"):
            if isinstance(getattr(self, name), (str, os.PathLike)):
                values[name] = os.fspath(getattr(self, name))
        return values | ({"greedy": True} if self.greedy else {})


def _of_codes(stages: Mapping[str, float]) -> float:
    if list(stages) != [STAGE]:
        raise UsageError(f"this bundle has no stages {', '.join(stages)}", f"`{STAGE}` is the only one")
    return stages[STAGE]
