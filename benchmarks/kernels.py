"""Our own kernels beside onnxruntime's, operator by operator, in turn: milliseconds, and the share of what is possible.

    python benchmarks/kernels.py [--threads 2] [--only fp32] [--runs 15] [--gbytes 34 --gflops 230 --gops 900]

Each row is one graph, opened as bundles are (onnxruntime optimises it, ours is rewritten) and with `VLRT_KERNELS=0`.
Products of few rows read their weights from memory, as a decoder does: a graph has as many of them as fill the cache
three times. The roofs are measured with NumPy unless given: its reading and its products with fp32, and four times
that for int8, of which an instruction multiplies four times as many; a row above 100 % shows that NumPy is not the
fastest either. Source of the roofs: Williams, Waterman and Patterson, "Roofline", CACM 52 (4), 2009.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vlrt.engines import EngineOptions, custom_kernels
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.engines.prepared import open_file
from vlrt.manifest import GraphSpec, TensorSpec

ROWS = (1, 5, 577)
WEIGHTS = ((768, 768), (768, 3072), (3072, 768), (768, 50257))
ATTENTION = ((577, 577, 12, 64), (4096, 4096, 8, 40), (1, 577, 8, 96), (5, 577, 8, 96))
"""Queries, keys, heads, width; up to eight queries as our decoders look at a memory: K [h, s, d], V^T [h, d, s]."""

_CACHES = 100 << 20
_FEW = 16


@dataclass(frozen=True)
class Roofs:
    """10^9 bytes and operations a second."""

    gbytes: float
    fp32: float
    int8: float


@dataclass(frozen=True)
class Case:
    """One graph: what it computes, and what it must read and multiply for that."""

    name: str
    model: onnx.ModelProto
    read: int
    operations: int
    is_int8: bool = False

    def limit(self, roofs: Roofs) -> float:
        """Seconds that the roofs leave possible."""
        arithmetic = self.operations / (roofs.int8 if self.is_int8 else roofs.fp32)
        return max(self.read / roofs.gbytes, arithmetic) / 1e9


def cases() -> Iterator[tuple[str, Callable[[str], Case]]]:
    """Names of all cases and what makes them; each is made when its turn comes, for its weights are large."""
    for is_int8 in (False, True):
        for inner, columns in WEIGHTS:
            for rows in ROWS:
                name = f"{'int8' if is_int8 else 'fp32'} {rows} x {inner} x {columns}"
                yield name, partial(product, sizes=(rows, inner, columns), is_int8=is_int8)
    for queries, keys, heads, width in ATTENTION:
        name = f"attention {queries} x {keys}, {heads} heads of {width}"
        yield name, partial(attention, sizes=(queries, keys, heads, width))


def product(name: str, sizes: tuple[int, int, int], is_int8: bool) -> Case:
    """As many products of one x as read `_CACHES` bytes, or a single one of many rows.

    Args:
        sizes: rows, inner, columns.
    """
    rows, inner, columns = sizes
    width = 1 if is_int8 else 4
    copies = -(-_CACHES // (inner * columns * width)) if rows < _FEW else 1
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(copies):
        if is_int8:
            block = random.integers(-127, 128, (inner, columns), np.int8)
            weights += [
                numpy_helper.from_array(np.full(columns, 0.01, np.float32), f"s{i}"),
                numpy_helper.from_array(np.zeros(columns, np.int8), f"z{i}"),
            ]
            names = ["x", f"w{i}", f"s{i}", f"z{i}"]
            nodes.append(helper.make_node("DynamicQuantizeMatMul", names, [f"y{i}"], domain="com.microsoft"))
        else:
            block = random.standard_normal((inner, columns), np.float32)
            nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
        weights.append(numpy_helper.from_array(block, f"w{i}"))
    outputs = {f"y{i}": (rows, columns) for i in range(copies)}
    model = _model(nodes, {"x": (rows, inner)}, outputs, weights)
    return Case(name, model, copies * inner * columns * width, 2 * copies * rows * inner * columns, is_int8)


def attention(name: str, sizes: tuple[int, int, int, int]) -> Case:
    """softmax(q k^T / sqrt(width)) v, written out as exporters do; of few queries as of products of few rows.

    Args:
        sizes: queries, keys, heads, width.
    """
    queries, keys, heads, width = sizes
    nodes = [helper.make_node("Mul", ["q", "scale"], ["scaled"])]
    weights = [numpy_helper.from_array(np.array(width**-0.5, np.float32), "scale")]
    is_memory = queries < _FEW
    q, k, v = ((1, heads, size, width) for size in (queries, keys, keys))
    if is_memory:
        q, v = (1, heads, width, queries), (1, heads, width, keys)
    one = 8 * heads * keys * width
    copies = -(-_CACHES // one) if is_memory else 1
    inputs, outputs = {"q": q}, {}
    for i in range(copies):
        inputs |= {f"k{i}": k, f"v{i}": v}
        outputs[f"y{i}"] = q
        scores, mixed = (
            ([f"k{i}", "scaled"], [f"v{i}", f"p{i}"]) if is_memory else (["scaled", f"t{i}"], [f"p{i}", f"v{i}"])
        )
        nodes += [
            *([] if is_memory else [helper.make_node("Transpose", [f"k{i}"], [f"t{i}"], perm=[0, 1, 3, 2])]),
            helper.make_node("MatMul", scores, [f"s{i}"]),
            helper.make_node("Softmax", [f"s{i}"], [f"p{i}"], axis=2 if is_memory else -1),
            helper.make_node("MatMul", mixed, [f"y{i}"]),
        ]
    model = _model(nodes, inputs, outputs, weights)
    return Case(name, model, copies * one, 4 * copies * heads * queries * keys * width)


def _model(nodes: list[onnx.NodeProto], inputs: dict, outputs: dict, weights: list) -> onnx.ModelProto:  # type: ignore[type-arg]
    def typed(shapes: dict) -> list[onnx.ValueInfoProto]:  # type: ignore[type-arg]
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    graph = helper.make_graph(nodes, "case", typed(inputs), typed(outputs), weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def sessions(case: Case, folder: Path, threads: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A bound run with our kernels, and one with onnxruntime's."""
    path = folder / "case.onnx"
    onnx.save(case.model, path)
    graph = case.model.graph

    def specs(values: object) -> tuple[TensorSpec, ...]:
        shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}  # type: ignore[attr-defined]
        return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())

    spec = GraphSpec(path.name, "fp32", specs(graph.input), specs(graph.output))
    random = np.random.default_rng(1)
    inputs = {t.name: random.standard_normal(t.shape, np.float32) for t in spec.inputs}
    os.environ["VLRT_KERNELS"] = "always"
    ours = open_file(spec, path, EngineOptions(threads=threads))
    if ours.path == path:
        raise SystemExit(f"`{case.name}` was not rewritten for our kernels")
    made = []
    for session in (ours, OnnxRuntimeSession(spec, path, EngineOptions(threads=threads))):
        made.append(session.bind(inputs, {t.name: np.empty(t.shape, np.float32) for t in spec.outputs}))
    return made[0], made[1]


def measure(case: Case, runs: int, threads: int) -> tuple[list[float], list[float]]:
    """Seconds of both sides, in turn; the first run of each does not count."""
    with tempfile.TemporaryDirectory() as name:
        sides = sessions(case, Path(name), threads)
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(runs + 1):
            for side, found in zip(sides, times):
                started = time.perf_counter()
                side()
                if turn:
                    found.append(time.perf_counter() - started)
    return times


def measured_roofs(threads: int) -> tuple[float, float]:
    """10^9 bytes and fp32 operations a second, by NumPy in a process of its own."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, "-m", "vlrt.roofline", str(threads)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)
    return found["gbytes"], found["gflops"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--only", default="", help="cases whose name this regular expression finds")
    parser.add_argument("--gbytes", type=float, help="read bandwidth, 10^9 bytes a second")
    parser.add_argument("--gflops", type=float, help="fp32 peak, 10^9 operations a second")
    parser.add_argument("--gops", type=float, help="int8 peak, 10^9 operations a second")
    given = parser.parse_args()
    if not custom_kernels.level():
        raise SystemExit("this processor cannot run our kernels, or the library was not built")
    gbytes, gflops = measured_roofs(given.threads)
    fp32 = given.gflops or gflops
    roofs = Roofs(given.gbytes or gbytes, fp32, given.gops or 4 * fp32)
    print(f"roofs: {roofs.gbytes:.1f} GB/s, {roofs.fp32:.0f} GFLOP/s, {roofs.int8:.0f} GOP/s; best (median) of runs")
    print(f"{'':38} {'ours, ms':>18} {'onnxruntime, ms':>18} {'times':>6}  {'ours reaches':>14} {'of roof':>8}")
    for name, make in cases():
        if not re.search(given.only, name):
            continue
        case = make(name)
        ours, theirs = measure(case, given.runs, given.threads)
        best, other, limit = min(ours), min(theirs), case.limit(roofs)
        reads = case.read / roofs.gbytes / 1e9 == limit
        reached = f"{case.read / best / 1e9:.1f} GB/s" if reads else f"{case.operations / best / 1e9:.0f} GOP/s"
        sides = (f"{min(t) * 1e3:.3f} ({statistics.median(t) * 1e3:.3f})" for t in (ours, theirs))
        columns = " ".join(f"{side:>18}" for side in sides)
        print(f"{case.name:38} {columns} {other / best:6.2f}  {reached:>14} {limit / best:8.0%}", flush=True)


if __name__ == "__main__":
    main()
