"""Where the graphs of a task stand between the processor's arithmetic and its memory.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 52 (4), 2009.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlrt.benchmark_probes import open_probe
from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions
from vlrt.errors import VlrtError
from vlrt.product_kernels import OURS, PRODUCTS

_WINDOWS = {"Conv1x1": 1, "Conv3x3": 9}
"""Convolutions of our own, whose packed weights do not show their window."""

_RUNS = 3
_MEGABYTES = 256


@dataclass(frozen=True)
class Roofs:
    """What the processor can do at most, as measured: 10^9 operations and 10^9 bytes a second."""

    gflops: float
    gbytes: float


@dataclass(frozen=True)
class Place:
    """One graph: milliseconds a run, operations per byte moved, and 10^9 operations a second."""

    role: str
    milliseconds: float
    intensity: float
    gflops: float

    def share(self, roofs: Roofs) -> float:
        """Of what the roofs leave possible at this intensity."""
        return self.gflops / min(roofs.gflops, roofs.gbytes * self.intensity)


@dataclass(frozen=True)
class Roofline:
    """The roofs, and every graph under them."""

    roofs: Roofs
    places: tuple[Place, ...]


def roofline(task: str, bundle: Bundle, engine: EngineOptions, photograph: bytes) -> Roofline:
    """Profiles a task on one photograph, greedily, and measures the machine.

    Operations are those of matrix products and convolutions; bytes are the weights as the engine holds them, and what
    every kernel reads and writes besides.
    """
    with tempfile.TemporaryDirectory(prefix="vlrt-roofline.") as folder:
        options = EngineOptions(engine.device, engine.threads, Path(folder))
        probe = open_probe(task, bundle, options, {"num_beams": 1} if task in ("caption", "answer") else {})
        for _ in range(_RUNS):
            probe.run([photograph])
        probe.sessions.end_profiles()
        del probe
        places = [_place(role, bundle, Path(folder)) for role in bundle.manifest.graphs]
    return Roofline(_roofs(engine.thread_count), tuple(place for place in places if place))


def _place(role: str, bundle: Bundle, folder: Path) -> Place | None:
    """A graph's place from its profile; none where it did not run, or computes no products."""
    paths = sorted(folder.glob(f"{role}_[0-9]*.json"))
    if not paths:
        return None
    events = json.loads(paths[-1].read_text("utf-8"))
    runs = [event["dur"] for event in events if event.get("name") == "model_run"]
    kernels = [event["args"] for event in events if event.get("cat") == "Node" and "op_name" in event["args"]]
    total = sum(map(operations, kernels))
    if not runs or not total:
        return None
    moved = _weights(role, bundle) * len(runs)
    moved += sum(int(args.get("activation_size", 0)) + int(args.get("output_size", 0)) for args in kernels)
    seconds = sum(runs) / 1e6
    return Place(role, round(seconds / len(runs) * 1e3, 3), total / moved, total / seconds / 1e9)


def _weights(role: str, bundle: Bundle) -> int:
    """Bytes of a graph's weights in memory: those kept as exact halves are widened when they are loaded."""
    graph, files = bundle.manifest.graphs[role], bundle.manifest.files
    total = sum(files[name].bytes for name in (graph.file, *graph.external))
    return total * (2 if graph.storage == "fp16" else 1)


def operations(kernel: Mapping[str, Any]) -> int:
    """Multiplications and additions of a product or convolution; the engine leaves packed weights out of the shapes."""
    inputs, outputs = (_shapes(kernel.get(name)) for name in ("input_type_shape", "output_type_shape"))
    if not inputs or not outputs:
        return 0
    name, made = kernel["op_name"], math.prod(outputs[0])
    if name in _WINDOWS:
        return 2 * made * inputs[0][1] * _WINDOWS[name]
    if "Conv" in name:
        return 2 * made * math.prod(inputs[1][1:]) if len(inputs) > 1 else 0
    if name == "Attention" and len(inputs) > 2 and len(inputs[1]) > 2:
        return 4 * made * max(inputs[1][1:])  # the profile does not tell the layout: the keys are the longest axis
    if name == "FusedMatMul" and len(inputs) > 1:
        batch = math.prod(outputs[0][:-2])
        return 2 * made * math.isqrt(math.prod(inputs[0]) * math.prod(inputs[1]) // max(1, made * batch))
    return 2 * made * inputs[0][-1] if name in PRODUCTS + OURS and inputs[0] else 0


def _shapes(described: object) -> list[list[int]]:
    every = described if isinstance(described, list) else []
    return [shape for entry in every for shape in entry.values()]


def _roofs(threads: int) -> Roofs:
    """In a process of its own, whose library for products starts with that many threads."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, "-m", "vlrt.roofline", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise VlrtError("the machine's roofs could not be measured", done.stderr.strip().splitlines()[-1])
    return Roofs(**json.loads(done.stdout))


def measure_roofs(threads: int) -> dict[str, float]:
    """Best of a few large products in fp32, and of reading a block of memory larger than the caches."""
    side = 1024
    a, b = (np.random.default_rng(i).random((side, side), np.float32) for i in range(2))
    product = _best(lambda: np.matmul(a, b))
    block = np.ones(_MEGABYTES << 18, np.float32)
    parts: Sequence[Any] = np.array_split(block, threads)
    with ThreadPoolExecutor(threads) as pool:
        reading = _best(lambda: list(pool.map(np.max, parts)))
    return {"gflops": 2 * side**3 / product / 1e9, "gbytes": block.nbytes / reading / 1e9}


def _best(call: Any) -> float:
    times = []
    for _ in range(8):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_roofs(int(sys.argv[1]))))
