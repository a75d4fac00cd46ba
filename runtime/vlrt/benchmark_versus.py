"""A task beside other libraries: the same weights, input and threads, each side in a process of its own, in turn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vlrt.benchmark_comparison import OURS, PEERS, Comparison, Figure, VersusOptions
from vlrt.benchmark_job import QUESTION, Job, Point, Side, SkippedError
from vlrt.benchmark_process import Worker, reason
from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions
from vlrt.errors import UsageError, VlrtError
from vlrt.image import load, preprocess
from vlrt.install_size import folder_size
from vlrt.text import TextCodec

_PROCESSOR = ("cpu", "openvino")
_PROMPT = "a photograph of two dogs in the snow"
_PAUSE = 0.05
"""Seconds between two sides: threads that spin for work must have gone to sleep before the next begins."""


def compare(
    task: str,
    bundle: Bundle,
    engine: EngineOptions,
    options: VersusOptions,
    photograph: bytes,
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Measures a task of a bundle beside other libraries.

    Args:
        photograph: an encoded image, which every side sees as the same pixels.
        progress: told each stage.

    Raises:
        UsageError: a device that the others do not compute on.
        VlrtError: our own side fails.
    """
    if engine.device.partition(":")[0] not in _PROCESSOR:
        raise UsageError(f"`{engine.device}` is not compared: the other sides compute on the processor", "--device cpu")
    skipped = {name: "not installed" for name in options.peers if find_spec(PEERS[name]) is None}
    with tempfile.TemporaryDirectory(prefix="vlrt-bench.") as folder:
        job = _job(task, bundle, engine, options, photograph, Path(folder))
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(asdict(job)), "utf-8")
        workers: list[Worker] = []
        try:
            for name in (OURS, *(peer for peer in options.peers if peer not in skipped)):
                progress(f"loading with {name}")
                try:
                    workers.append(_start(name, path, job))
                except VlrtError as error:
                    if name == OURS:
                        raise
                    skipped[name] = error.what
            points = options.points(task in ("caption", "answer"))
            for point in points:
                progress(f"{point.name}: {', '.join(worker.name for worker in workers)} in turn")
                _measure(workers, point, options.rounds)
            sides = {worker.name: Side(**worker.ask(None)) for worker in workers}
        finally:
            for worker in workers:
                worker.close()
    return Comparison(
        task=task,
        bundle=bundle.name,
        threads=job.threads,
        tokens=job.tokens if task in ("caption", "answer") else 0,
        rounds=options.rounds,
        figures=[figure for point in points for figure in _figures(workers, point)],
        sides=sides,
        first_ms={worker.name: round(worker.first * 1e3, 1) for worker in workers},
        load_ms={worker.name: round(worker.load * 1e3, 1) for worker in workers},
        skipped=skipped,
        bundle_mb=folder_size(Path(job.folder)),
    )


def _job(
    task: str, bundle: Bundle, engine: EngineOptions, options: VersusOptions, photograph: bytes, folder: Path
) -> Job:
    described = bundle.manifest
    arrays = {} if task == "generate" else _inputs(bundle, task, photograph, max(options.batches))
    np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
    seed = described.source.revision.removeprefix("seed ")
    return Job(
        task=task,
        folder=str(bundle.path),
        model=described.name,
        family=described.family,
        source=options.source or described.source.origin,
        seed=int(seed) if seed.isdecimal() else 0,
        device=engine.device,
        threads=engine.thread_count,
        tokens=options.tokens,
        inputs=str(folder / "inputs.npz"),
        prompt=_PROMPT if described.diffusion and described.diffusion.prompts else "",
        steps=options.steps,
        prepared=str(folder),
    )


def _inputs(bundle: Bundle, task: str, photograph: bytes, rows: int) -> dict[str, Any]:
    """The photograph's pixels, and the question's ids where the model reads it by an encoder."""
    described = bundle.manifest
    if described.image is None:
        raise UsageError(f"`{bundle.name}` reads no photographs", "compare `generate`")
    arrays: dict[str, Any] = {"pixels": np.repeat(preprocess([load(photograph)], described.image), rows, axis=0)}
    if task == "answer" and described.answer and described.answer.question == "encoder":
        asked = described.answer.template.replace("{}", QUESTION)
        arrays["input_ids"] = np.repeat(TextCodec.open(bundle).encode([asked]), rows, axis=0)
    return arrays


def _start(name: str, path: Path, job: Job) -> Worker:
    """A side after its first result; other libraries' weights are brought into their layout before, unmeasured."""
    threads = str(job.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if name == OURS:
        return Worker.start(name, [sys.executable, "-m", "vlrt.benchmark_worker", str(path)], environment)
    command = [sys.executable, "-m", "vlrt_export.peers"]
    prepared = subprocess.run(
        [*command, "prepare", name, str(path)], capture_output=True, text=True, env=environment, check=False
    )
    if prepared.returncode:
        raise SkippedError(reason(prepared.stderr))
    return Worker.start(name, [*command, "serve", name, str(path)], environment)


def _measure(workers: Sequence[Worker], point: Point, rounds: int) -> None:
    """One round that is not counted, then the others; the order turns, so that none always follows the same."""
    for turn in range(rounds + 1):
        for place in range(len(workers)):
            worker = workers[(place + turn) % len(workers)]
            time.sleep(_PAUSE)
            found = worker.ask(point)
            worker.results[point] = found["result"]
            if turn:
                worker.seconds.setdefault(point, []).append(float(found["seconds"]))


def _figures(workers: Sequence[Worker], point: Point) -> list[Figure]:
    ours = workers[0]
    base = float(np.median(ours.seconds[point]))
    found = []
    for worker in workers:
        low, median, high = (float(v) * 1e3 for v in np.percentile(worker.seconds[point], [25, 50, 75]))
        agrees = _agree(ours.results[point], worker.results[point])
        values = (round(median, 3), round(low, 3), round(high, 3), round(median / (base * 1e3), 3))
        found.append(Figure(worker.name, point, *values, agrees))
    return found


def _agree(ours: list[Any], theirs: list[Any]) -> bool:
    """The same tokens, or numbers that point the same way."""
    if len(ours) != len(theirs):
        return False
    if all(isinstance(value, int) for value in ours):
        return ours == theirs
    a, b = np.asarray(ours), np.asarray(theirs)
    return bool(a @ b >= 0.999 * np.linalg.norm(a) * np.linalg.norm(b))
