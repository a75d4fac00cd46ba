"""Heights and widths: what each stage's samples measure for a picture of the size that was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from vlrt.diffusion_sections import StageSpec
from vlrt.errors import BundleError, UsageError


@dataclass(frozen=True)
class Sizes:
    """Which sizes the stages of a task allow; all of them grow together.

    Args:
        stages: those that run.
        largest: pixels of the longest side of the finished picture.
        reference: stage and picture whose size is given: the last stage's finished picture, or, for upscaling, the
            picture the first stage starts from; rows and columns at the default size.
    """

    stages: Sequence[StageSpec]
    largest: int
    reference: tuple[int, int]

    @classmethod
    def of_result(cls, stages: Sequence[StageSpec], largest: int) -> Sizes:
        """Sizes named by the finished picture."""
        last = _spatial(stages)[-1]
        return cls(stages, largest, (last.shape[1] * last.factor, last.shape[2] * last.factor))

    @classmethod
    def of_source(cls, stages: Sequence[StageSpec], before: StageSpec | None, largest: int) -> Sizes:
        """Sizes named by the picture that the first stage makes larger; `before` is the stage that gives it."""
        first = _spatial(stages)[0]
        rows, columns = first.shape[1:] if before is None else (side * before.factor for side in before.shape[1:])
        return cls(stages, largest, (rows, columns))

    def check(self, height: int, width: int) -> tuple[int, int]:
        """The size, if it is one that every stage can do.

        Raises:
            UsageError: it is not; the nearest allowed ones are named.
        """
        for axis, (name, side) in enumerate((("height", height), ("width", width))):
            allowed = self._allowed(axis, side)
            if side not in allowed:
                shown = " or ".join(map(str, allowed))
                step = self._step(axis)
                why = f"multiples of {step} up to {self._most(axis)} are" if step else "the model has one size only"
                raise UsageError(f"a {name} of {side} pixels is not possible: {why}", f"--{name} {shown}")
        return height, width

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """The size rounded down to one that every stage can do; one that is too large is scaled first."""
        scale = min(1.0, self._most(0) / height, self._most(1) / width)
        fitted = []
        for axis, side in enumerate((int(height * scale), int(width * scale))):
            step = self._step(axis)
            fitted.append(max(side - side % step, step) if step else self.reference[axis])
        return fitted[0], fitted[1]

    def shapes(self, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Shape of each stage's sample, without the batch."""
        found: dict[str, tuple[int, ...]] = {}
        for stage in self.stages:
            if len(stage.shape) == 1:
                found[stage.name] = stage.shape
                continue
            rows, columns = (
                int(Fraction(side * default, reference))
                for side, default, reference in zip((height, width), stage.shape[1:], self.reference)
            )
            found[stage.name] = (stage.shape[0], rows, columns)
        return found

    def _step(self, axis: int) -> int:
        spatial = _spatial(self.stages)
        if not all(stage.multiple for stage in spatial):
            return 0
        # A side fits where side · default / reference is a multiple of the stage's for each of them.
        steps = [Fraction(stage.multiple * self.reference[axis], stage.shape[1 + axis]) for stage in spatial]
        return math.lcm(*(step.numerator for step in steps))

    def _most(self, axis: int) -> int:
        last = _spatial(self.stages)[-1]
        enlarged = Fraction(last.shape[1 + axis] * last.factor, self.reference[axis])
        most = int(self.largest / enlarged)
        return most - most % (self._step(axis) or 1)

    def _allowed(self, axis: int, side: int) -> list[int]:
        step = self._step(axis)
        if not step:
            return [self.reference[axis]]
        below = side - side % step
        near = {min(max(place, step), self._most(axis)) for place in (below, below + (step if side % step else 0))}
        return sorted(near)


def _spatial(stages: Sequence[StageSpec]) -> list[StageSpec]:
    found = [stage for stage in stages if len(stage.shape) == 3]
    if not found or len(stages[-1].shape) == 1:
        raise BundleError("the last stage of the bundle makes no picture", "export it again")
    return found
