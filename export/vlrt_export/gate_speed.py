"""How fast a candidate graph is beside its fp32 twin, and which kernels it really runs."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlrt.engines import EngineOptions
from vlrt.engines.prepared import open_file
from vlrt.errors import VlrtError
from vlrt.manifest import GraphSpec
from vlrt_export.trial import Call

_RUNS = 15
_WARM = 2
_SECONDS = 20.0
"""After these a shape of call is measured no more, once it has run `_FEWEST` times."""

_FEWEST = 5
_SHAPES = 4
"""Shapes of calls that are measured: those that most time goes to."""

_TOGETHER = 4 << 30
"""Bytes of an fp32 graph beyond which its reduced forms are not in memory together."""

_OURS = {"DynamicQuantizeMatMul": "LinearInt8"}
"""Operators that a graph asks for, and our own kernels that run in their place where the processor has them."""

Written = tuple[GraphSpec, Path]


@dataclass(frozen=True)
class Speed:
    """Milliseconds of both twins for the calls of one use, and the quartiles that tell how sure they are.

    Args:
        fp32, reduced: sums over the shapes of calls: median times how often.
        spread: the wider of both interquartile ranges over its median, of the shape that counts most.
        runs: of that shape.
    """

    fp32: float
    reduced: float
    spread: float
    runs: int

    @property
    def ratio(self) -> float:
        return self.fp32 / self.reduced


def measure_speed(fp32: Written, reduced: Sequence[Written], calls: Sequence[tuple[Call, int]]) -> list[Speed]:
    """Runs a graph and its reduced forms in turn on the same inputs; large graphs each reduced form apart.

    Args:
        fp32, reduced: signature and path of each.
        calls: one of each shape, and how often it was called.
    """
    size = sum((fp32[1].parent / name).stat().st_size for name in (fp32[1].name, *fp32[0].external))
    if size > _TOGETHER and len(reduced) > 1:
        return [speed for one in reduced for speed in measure_speed(fp32, [one], calls)]
    sessions = [open_file(*written, EngineOptions()) for written in (fp32, *reduced)]
    totals, widest = [0.0] * len(sessions), (0.0, [0.0] * len(sessions), 0)
    for call, count in sorted(calls, key=lambda pair: -pair[1])[:_SHAPES]:
        times = alternate([call.ready(session) for session in sessions])
        medians = [statistics.median(found) * count for found in times]
        totals = [have + more for have, more in zip(totals, medians)]
        widest = max(widest, (medians[0], list(map(_spread, times)), len(times[0])))
    _, spreads, runs = widest
    return [Speed(totals[0], total, max(spreads[0], spread), runs) for total, spread in zip(totals[1:], spreads[1:])]


def alternate(calls: Sequence[Callable[[], object]]) -> list[list[float]]:
    """Milliseconds of each call, all in turn, so that a busy moment meets all; the first rounds do not count."""
    times: list[list[float]] = [[] for _ in calls]
    end = time.monotonic() + _SECONDS
    for turn in range(_RUNS + _WARM):
        for found, call in zip(times, calls):
            started = time.perf_counter()
            call()
            if turn >= _WARM:
                found.append((time.perf_counter() - started) * 1e3)
        if time.monotonic() > end and len(times[0]) >= _FEWEST:
            break
    return times


def _spread(times: Sequence[float]) -> float:
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def executed_kernels(written: Written, call: Call) -> Counter[str]:
    """How often each operator ran in one call, as the engine's profile tells.

    Raises:
        VlrtError: the profile says nothing.
    """
    spec, path = written
    with tempfile.TemporaryDirectory() as name:
        session = open_file(spec, path, EngineOptions(profile=Path(name)))
        call.ready(session)()
        events = json.loads(session.end_profile().read_text("utf-8"))
    found = Counter(event["args"]["op_name"] for event in events if event.get("cat") == "Node" and _ran(event))
    if not found:
        raise VlrtError(f"the profile of `{path.name}` names no kernels", "use a version of onnxruntime that does")
    return found


def times_run(ran: Counter[str], operator: str) -> int:
    """How often what a graph asks for ran, by onnxruntime's kernel or by ours."""
    return ran[operator] + ran[_OURS.get(operator, "")]


def _ran(event: Mapping[str, object]) -> bool:
    return "op_name" in event.get("args", {}) and str(event.get("name", "")).endswith("_kernel_time")  # type: ignore[operator]
