"""Parity of written graphs with torch, through the runtime's own sessions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from vlrt.engines import Array, Session, Sessions
from vlrt.errors import VlrtError
from vlrt.manifest import Measurement
from vlrt_export.graph import Graph


class ParityError(VlrtError):
    """A graph or a rung differs from the reference by more than its tolerance; nothing was written."""


def measure_graph(graph: Graph, sessions: Sessions) -> Iterator[Measurement]:
    """Rung 2: largest absolute difference between torch and the written graph, per output, over all cases.

    Raises:
        ValueError: the family gave cases of one shape only for a graph with dynamic axes.
    """
    cases = [graph.inputs, *graph.cases]
    if graph.dynamic and len({_shapes(case) for case in cases}) < 2:
        raise ValueError(f"graph `{graph.role}` has dynamic axes: give cases of several shapes")
    worst = dict.fromkeys(map(_stage, graph.outputs), 0.0)
    # One after the other: weights of a large model do not fit into memory twice, once for each.
    references = [run_torch(graph, case) for case in cases]
    graph.drop_weights()
    for case, expected in zip(cases, references):
        found = _run_session(graph, sessions.get(graph.role), case, expected)
        for name in graph.outputs:
            if graph.filled and name in graph.in_place:
                _forget_unfilled(found[name], expected[name], case[graph.filled])
            worst[_stage(name)] = max(worst[_stage(name)], difference(found[name], expected[name]))
    for name, value in worst.items():
        yield Measurement(
            f"{graph.role}.{name}",
            f"max abs error over {len(cases)} cases",
            value,
            graph.tolerance,
            "torch module",
            torch.__version__,
        )


def run_torch(graph: Graph, inputs: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """Runs the graph's module; outputs by name as arrays."""
    with torch.no_grad():
        result = graph.module(*inputs.values())
    values = result if isinstance(result, (tuple, list)) else (result,)
    return {name: value.numpy() for name, value in zip(graph.outputs, values)}


def _run_session(
    graph: Graph, session: Session, case: Mapping[str, torch.Tensor], expected: Mapping[str, Array]
) -> dict[str, Array]:
    """Runs the written graph; where it works in place, on bound buffers as the loop does."""
    inputs = {name: value.numpy() for name, value in case.items()}
    if not graph.in_place:
        return session.run(**inputs)
    inputs |= {name: inputs[name].copy() for name in graph.in_place.values()}
    outputs = {name: np.zeros_like(value) for name, value in expected.items()}
    outputs |= {name: inputs[source] for name, source in graph.in_place.items()}
    session.bind(inputs, outputs)()
    return outputs


def _forget_unfilled(found: Array, expected: Array, last: torch.Tensor) -> None:
    """Beyond its last token a row of a cache may hold anything."""
    for row, place in enumerate(last.tolist()):
        found[row, :, place + 1 :] = expected[row, :, place + 1 :]


def difference(found: Array, expected: Array) -> float:
    """Largest absolute difference; infinite where shapes differ or only one of the two is not a number."""
    if found.shape != expected.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):  # inf - inf: equal infinities are no difference
        gap = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    gap[found == expected] = 0.0
    return float("inf") if np.isnan(gap).any() else float(gap.max(initial=0.0))


def admit(measurements: list[Measurement]) -> None:
    """Raises `ParityError` that names the worst of those beyond their limit."""
    failed = [m for m in measurements if not m.passed]
    if failed:
        first = failed[0]
        what = f"`{first.stage}` fails parity: {first.metric} is {first.value:.3g}, the limit is {first.limit:.3g}"
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise ParityError(what + more, "the bundle was not written; please report the model and versions")


def _stage(output: str) -> str:
    """Outputs of every layer, ``key.0`` and so on, are one line of the certificate."""
    return re.sub(r"\.\d+$", ".*", output)


def _shapes(case: Mapping[str, torch.Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(value.shape) for value in case.values())
