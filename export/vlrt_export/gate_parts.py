"""Which parts of reduced graphs hurt most, each measured by leaving it out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from vlrt.engines import Array, EngineOptions
from vlrt.engines.prepared import open_file
from vlrt.manifest import GraphSpec
from vlrt_export.reduced_graph import Workshop
from vlrt_export.trial import Call, Record

_CALLS = 2


def sensitive_parts(
    reduced: Mapping[str, tuple[Workshop, str]], records: Mapping[str, Record]
) -> list[tuple[str, str]]:
    """Role and name of every reduced part, first the one that adds most to its graph's squared error.

    What a part adds is measured by leaving it alone in fp32: errors of parts are nearly independent, so that their
    squares add up.

    Args:
        reduced: role -> workshop and kind.
        records: real calls of each graph.
    """
    ranked: list[tuple[float, str, str]] = []
    for role, (shop, kind) in reduced.items():
        calls = records[role].calls[:_CALLS]
        expected = _outputs((shop.spec, shop.path), calls)
        whole = _error(shop, kind, (), calls, expected)
        ranked += [(whole - _error(shop, kind, (part,), calls, expected), role, part) for part in shop.parts(kind)]
    return [(role, part) for _, role, part in sorted(ranked, key=lambda one: -one[0])]


def _error(
    shop: Workshop, kind: str, kept: Collection[str], calls: Sequence[Call], expected: Sequence[Mapping[str, Array]]
) -> float:
    """Squared relative error of a graph with some parts kept; none where nothing else is reduced."""
    made = shop.make(kind, kept)
    if made is None:
        return 0.0
    error = relative_error(_outputs((made.spec, made.path), calls), expected)
    made.discard()
    return error**2


def _outputs(written: tuple[GraphSpec, Path], calls: Sequence[Call]) -> list[dict[str, Array]]:
    session = open_file(*written, EngineOptions())
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
