"""The step of an LSTM captioner against the machine's limit, and a whole caption at several beams.

    python benchmarks/lstm_step.py BUNDLE [--rows 1 3 20] [--threads 2] [--json FILE]

The limit of a step is the larger of two times: reading every weight once at the read bandwidth, and its
multiplications and additions at the matrix peak. Both are measured in this run, alternating with the steps, with as
many threads. The peak is that of a large product in onnxruntime's own kernels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, generate
from vlrt.engines import EngineOptions
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.image import preprocess
from vlrt.manifest import GraphSpec, TensorSpec
from vlrt.tasks.caption import Captioner
from vlrt.verify import synthetic_picture

_SIDE = 1024
_READ_BYTES = 256 << 20
_ROUNDS = 15


@dataclass(frozen=True)
class Work:
    """What one step must do: bytes of weights, and floating operations of its products for one row."""

    bytes: int
    operations: int

    def seconds(self, rows: int, bandwidth: float, peak: float) -> float:
        return max(self.bytes / bandwidth, rows * self.operations / peak)


def best_seconds(call: Callable[[], object], repeats: int) -> float:
    """The fastest of some calls."""
    return min(_seconds(call) for _ in range(repeats))


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    return float(np.median([_seconds(call) for _ in range(repeats)]))


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def read_call(threads: int) -> Callable[[], object]:
    """Reads `_READ_BYTES` once, in as many parts as there are threads."""
    parts = np.array_split(np.ones(_READ_BYTES // 4, np.float32), threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.max, parts))


def product_session(folder: Path, threads: int) -> Callable[[], None]:
    """One large matrix product, bound."""
    weight = numpy_helper.from_array(np.ones((_SIDE, _SIDE), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SIDE, _SIDE]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "product", [x], [y], [weight])
    path = folder / "product.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    signature = (TensorSpec("x", "float32", (_SIDE, _SIDE)),), (TensorSpec("y", "float32", (_SIDE, _SIDE)),)
    session = OnnxRuntimeSession(GraphSpec(path.name, "fp32", *signature), path, EngineOptions(threads=threads))
    block = np.ones((_SIDE, _SIDE), np.float32)
    return session.bind({"x": block}, {"y": np.empty_like(block)})


def step_work(path: Path) -> Work:
    """Weights of the step graph in fp32, and the operations of its products with weights, per row."""
    graph = onnx.load(path).graph
    sizes = {tensor.name.removesuffix(".fp16"): tuple(tensor.dims) for tensor in graph.initializer}
    products = [name for node in graph.node if node.op_type in ("Gemm", "MatMul") for name in node.input]
    operations = sum(2 * int(np.prod(sizes[name])) for name in products if len(sizes.get(name, ())) == 2)
    return Work(sum(4 * int(np.prod(dims)) for dims in sizes.values()), operations)


def bound_step(captioner: Captioner, rows: int) -> Callable[[], None]:
    """One step over `rows` rows of one image, on states as they are at a caption's start."""
    spec = captioner.spec
    pixels = preprocess([synthetic_picture()], captioner.image_spec)
    initial = captioner.sessions.run_chain(spec.chain, {captioner.image_spec.input: pixels})
    inputs: dict[str, Any] = {spec.token: np.full(rows, spec.start_ids[0], np.int64)}
    for state in spec.states:
        if state.kind == "noise":
            inputs[state.input] = np.full((rows, 1), 0.5, np.float32)
            continue
        value = initial[state.source]
        inputs[state.input] = np.repeat(value, rows, 0) if state.kind == "recurrent" else value
    session = captioner.sessions.get(spec.step)
    sizes = {"rows": rows, "images": 1}
    outputs = {
        tensor.name: np.empty([sizes[a] if isinstance(a, str) else a for a in tensor.shape], np.float32)
        for tensor in session.spec.outputs
    }
    return session.bind(inputs, outputs)


def measure_steps(captioner: Captioner, rows: list[int], threads: int, folder: Path) -> list[dict[str, float]]:
    """Steps, bandwidth and peak in alternating rounds; medians over rounds."""
    _, path = captioner.bundle.graph(captioner.spec.step)
    work = step_work(path)
    read, product = read_call(threads), product_session(folder, threads)
    steps = {count: bound_step(captioner, count) for count in rows}
    for step in steps.values():
        median_seconds(step, 20)
    bandwidths, peaks, times = [], [], {count: [] for count in rows}
    for _ in range(_ROUNDS):
        bandwidths.append(_READ_BYTES / best_seconds(read, 2))
        peaks.append(2 * _SIDE**3 / best_seconds(product, 3))
        for count, step in steps.items():
            times[count].append(median_seconds(step, 20))
    bandwidth, peak = float(np.median(bandwidths)), float(np.median(peaks))
    print(f"read {bandwidth / 1e9:.1f} GB/s, matrix peak {peak / 1e9:.0f} GFLOP/s, {threads} threads")
    print(f"step: {work.bytes / 1e6:.1f} MB of weights, {work.operations / 1e6:.1f} MFLOP a row")
    results = []
    for count in rows:
        limit, found = work.seconds(count, bandwidth, peak), float(np.median(times[count]))
        print(f"rows {count:3}: {found * 1e3:6.3f} ms, limit {limit * 1e3:6.3f} ms, ratio {found / limit:.2f}")
        results.append({"rows": count, "ms": found * 1e3, "limit_ms": limit * 1e3, "ratio": found / limit})
    return results


def measure_captions(captioner: Captioner, beams: list[int]) -> list[dict[str, float]]:
    """Whole captions (encode and decode) and their decoding alone, alternating over the beam widths."""
    pixels = preprocess([synthetic_picture()], captioner.image_spec)
    spec = captioner.spec

    def encode() -> dict[str, Any]:
        return captioner.sessions.run_chain(spec.chain, {captioner.image_spec.input: pixels})

    def decode(width: int, initial: dict[str, Any]) -> object:
        options = DecodeOptions.from_manifest(spec.defaults, num_beams=width)
        return generate(captioner.step_model, initial, options)

    initial = encode()
    whole, alone = ({width: [] for width in beams} for _ in range(2))
    for _ in range(_ROUNDS + 2):
        for width in beams:
            whole[width].append(_seconds(lambda width=width: decode(width, encode())))
            alone[width].append(_seconds(lambda width=width: decode(width, initial)))
    results = []
    greedy = float(np.median(whole[beams[0]][2:]))
    for width in beams:
        total, decoding = (float(np.median(times[width][2:])) for times in (whole, alone))
        print(
            f"caption, beams {width:2}: {total * 1e3:6.1f} ms ({decoding * 1e3:5.1f} decoding), {total / greedy:.2f}x"
        )
        results.append({"beams": width, "ms": total * 1e3, "decode_ms": decoding * 1e3, "of_first": total / greedy})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 3, 5, 20])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3, 20])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()

    captioner = Captioner(Bundle.open(given.bundle), EngineOptions(threads=given.threads))
    with tempfile.TemporaryDirectory() as folder:
        steps = measure_steps(captioner, given.rows, given.threads, Path(folder))
    captions = measure_captions(captioner, given.beams)
    if given.json:
        given.json.write_text(json.dumps({"steps": steps, "captions": captions}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
