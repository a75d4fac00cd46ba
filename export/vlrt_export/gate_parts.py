"""Which parts of reduced graphs hurt most, each measured by leaving it out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlrt.engines import Array, EngineOptions, Session
from vlrt.engines.onnxruntime import Form, OnnxRuntimeSession
from vlrt.engines.prepared import open_file
from vlrt_export.reduced_graph import Candidate, Workshop
from vlrt_export.trial import Call, Record

_CALLS = 2
_RUNS = 12
"""Runs that the convolutions of a graph are divided into."""

_SECONDS_BETWEEN = 10.0
"""What is told of a search's progress."""


def sensitive_parts(
    reduced: Mapping[str, tuple[Workshop, str]],
    records: Mapping[str, Record],
    per_byte: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[tuple[str, str]]:
    """Role and name of every reduced part, first those that add most to their graph's squared error.

    What a part adds is measured by leaving it alone in fp32: errors of parts are nearly independent, so that their
    squares add up. Convolutions are left alone in runs: between two in int8 one in fp32 reads and gives eight bits.

    Args:
        reduced: role -> workshop and kind.
        records: real calls of each graph.
        per_byte: whether what counts is the error that a byte saves, where size is wanted.
        progress: told how far this is, now and then.
    """
    ranked: list[tuple[float, Sequence[str], str]] = []
    told = time.monotonic()
    for role, (shop, kind) in reduced.items():
        trial, runs = _Trial(shop, kind, records[role].calls[:_CALLS]), _runs(shop, kind)
        for done, run in enumerate(runs):
            if time.monotonic() - told > _SECONDS_BETWEEN:
                told = time.monotonic()
                progress(f"{done} of {len(runs)} parts of {role}")
            added = trial.whole - trial.error_without(run)
            ranked.append((added / (shop.weight(run) if per_byte else len(run)), run, role))
        trial.close()
    return [(role, part) for _, run, role in sorted(ranked, key=lambda one: -one[0]) for part in run]


def _runs(shop: Workshop, kind: str) -> list[list[str]]:
    """Parts that are left alone together: matrices one by one, convolutions in runs of neighbours."""
    convolutions = shop.convolutions(kind)
    length = max(1, -(-len(convolutions) // _RUNS))
    alone = [[part] for part in shop.parts(kind) if part not in set(convolutions)]
    return alone + [convolutions[start : start + length] for start in range(0, len(convolutions), length)]


class _Trial:
    """A reduced graph's squared relative error, as a whole and with parts left alone."""

    def __init__(self, shop: Workshop, kind: str, calls: Sequence[Call]) -> None:
        self._shop, self._kind, self._calls = shop, kind, calls
        self._expected = _outputs(open_file(shop.spec, shop.path, EngineOptions()), calls)
        self._made = shop.make(kind)
        self._restorable = shop.restorable(self._made) if self._made else None
        self._convolutions = frozenset(shop.convolutions(kind))
        self.whole = self._restored(()) if self._restorable else self._error_of(self._made)

    def error_without(self, run: Sequence[str]) -> float:
        """The error with some parts in fp32."""
        if self._convolutions.issuperset(run):
            return self._restored(run)
        made = self._shop.make(self._kind, run)
        error = self._error_of(made)
        if made is not None:
            made.discard()
        return error

    def close(self) -> None:
        if self._made is not None:
            self._made.discard()

    def _error_of(self, made: Candidate | None) -> float:
        """None where nothing is reduced."""
        return 0.0 if made is None else self._error(open_file(made.spec, made.path, EngineOptions()))

    def _restored(self, run: Sequence[str]) -> float:
        if self._made is None or self._restorable is None:
            raise ValueError(f"`{self._shop.role}` has no reduced convolutions")
        path = self._made.path.with_name("restored.onnx")
        self._restorable.write(run, path)
        return self._error(OnnxRuntimeSession(self._made.spec, path, EngineOptions(), Form(optimised=True)))

    def _error(self, session: Session) -> float:
        return relative_error(_outputs(session, self._calls), self._expected) ** 2


def _outputs(session: Session, calls: Sequence[Call]) -> list[dict[str, Array]]:
    return [{name: array.copy() for name, array in call.ready(session)().items()} for call in calls]


def relative_error(found: Sequence[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]]) -> float:
    """The largest root mean square difference of an output over that output's standard deviation."""
    worst = 0.0
    for ours, theirs in zip(found, expected):
        for name, value in theirs.items():
            finite = np.isfinite(value)
            gap = np.sqrt(np.mean(np.square(ours[name][finite] - value[finite], dtype=np.float64)))
            worst = max(worst, float(gap / max(float(value[finite].std()), 1e-9)))
    return worst
