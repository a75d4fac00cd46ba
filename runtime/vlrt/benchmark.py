"""Measuring a task: load, first result, stages, steps, throughput and memory; warm-up kept apart."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import vlrt
from vlrt import zoo
from vlrt.benchmark_job import QUESTION
from vlrt.benchmark_probes import LABELS, Probe, open_probe
from vlrt.decode import DecodeOptions
from vlrt.engines import EngineOptions
from vlrt.errors import UsageError, VlrtError
from vlrt.image import load
from vlrt.product_kernels import describe_kernels
from vlrt.verify import SENTENCES, synthetic_picture

DECODING = ("caption", "answer")
"""Tasks with a decoder."""


@dataclass(frozen=True)
class BenchOptions:
    """How much is measured.

    Args:
        repeats: measured runs of each point, after `warmup` runs that are not counted.
        warmup: runs before.
        batches: batch sizes for the throughput.
        processes: whole processes started for the time from command to result; 0 leaves it out.
        decode: options of the search, for captioning.
    """

    repeats: int = 20
    warmup: int = 3
    batches: tuple[int, ...] = (1, 2, 4, 8)
    processes: int = 3
    decode: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.warmup < 0 or self.processes < 0 or not all(b > 0 for b in self.batches):
            raise UsageError("bench needs at least one repeat and batch sizes above zero")


@dataclass(frozen=True)
class Latency:
    """Median and 95th percentile of `count` measurements, in milliseconds."""

    p50: float
    p95: float
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Of measurements in seconds."""
        milliseconds = np.asarray(seconds) * 1000.0
        p50, p95 = np.percentile(milliseconds, [50, 95])
        return cls(round(float(p50), 3), round(float(p95), 3), len(seconds))


@dataclass(frozen=True)
class Report:
    """One benchmark, ready for JSON.

    Args:
        load_ms: opening the bundle and loading every graph the task needs.
        first_ms: the first result after loading, nothing warm.
        process_ms: whole processes, from the command to its end; `None` where not measured.
        stages: latency by stage of one photograph.
        step: latency of one decoder step, search included; `None` for tasks that do not decode.
        throughput: photographs per second by batch size.
        peak_mb: largest resident memory of the measuring process, in 10^6 bytes.
        result: what the task gave, to show that it did its work.
        versus, roofline: of `vlrt bench --vs` and of its page, as JSON values.
        stage_steps: latency of one step of every diffusion stage.
        kernels: whose kernels run the products, in words; see `describe_kernels`.
    """

    task: str
    bundle: str
    device: str
    threads: int
    load_ms: float
    first_ms: float
    process_ms: Latency | None
    stages: dict[str, Latency]
    step: Latency | None
    throughput: dict[int, float]
    peak_mb: float
    result: str
    options: dict[str, Any]
    machine: dict[str, str]
    versions: dict[str, str]
    versus: dict[str, Any] | None = None
    roofline: dict[str, Any] | None = None
    stage_steps: dict[str, Latency] = field(default_factory=dict)
    kernels: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def bench(
    task: str,
    model: str | None,
    engine: EngineOptions,
    options: BenchOptions,
    photograph: bytes | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Measures a task of a bundle on one photograph.

    Args:
        photograph: an encoded image; a synthetic one of 640x480 where `None`.
        progress: told each stage.

    Raises:
        VlrtError: as `vlrt.load` does.
    """
    image = synthetic_jpeg() if photograph is None else photograph
    _check(task, model, options, image)
    progress("whole processes")
    processes = _whole_processes(task, model, engine, options, image)
    progress("load")
    started = time.perf_counter()
    bundle = zoo.resolve(model, task)
    probe = open_probe(task, bundle, engine, options.decode)
    loaded = time.perf_counter()
    probe.run([image])
    first = time.perf_counter()
    progress("warm-up and stages")
    for _ in range(options.warmup):
        probe.run([image])
    probe.steps.clear()
    stage_steps: dict[str, list[float]] = getattr(probe, "stage_steps", {})
    stage_steps.clear()
    runs = [probe.run([image]) for _ in range(options.repeats)]
    stages = {name: Latency.of([run[name] for run in runs]) for name in runs[0]}
    stages["all"] = Latency.of([sum(run.values()) for run in runs])
    throughput = {}
    for batch in options.batches:
        progress(f"throughput at batch {batch}")
        throughput[batch] = _throughput(probe, [image] * batch, options)
    if engine.profile is not None:
        probe.sessions.end_profiles()
    return Report(
        task=task,
        bundle=bundle.name,
        device=engine.device,
        threads=engine.thread_count,
        load_ms=round((loaded - started) * 1000, 2),
        first_ms=round((first - loaded) * 1000, 2),
        process_ms=Latency.of(processes) if processes else None,
        stages=stages,
        step=Latency.of(probe.steps) if probe.steps else None,
        throughput=throughput,
        peak_mb=round(peak_memory() / 1e6, 1),
        result=probe.result,
        options={"repeats": options.repeats, "warmup": options.warmup} | options.decode,
        machine=machine(),
        versions=versions(),
        stage_steps={name: Latency.of(seconds) for name, seconds in stage_steps.items() if seconds},
        kernels=describe_kernels(probe.sessions.loaded()),
    )


def _check(task: str, model: str | None, options: BenchOptions, image: bytes) -> None:
    """Finds out before minutes of measuring what would fail in them."""
    load(image)
    decode = zoo.resolve(model, task).manifest.decode
    if task in DECODING and decode is not None:
        DecodeOptions.from_manifest(decode.defaults, **options.decode)


def _throughput(probe: Probe, images: Sequence[bytes], options: BenchOptions) -> float:
    """Photographs per second: the median over runs."""
    probe.run(images)
    seconds = []
    for _ in range(max(3, options.repeats // 4)):
        started = time.perf_counter()
        probe.run(images)
        seconds.append(time.perf_counter() - started)
    return round(len(images) / float(np.median(seconds)), 2)


def _whole_processes(
    task: str, model: str | None, engine: EngineOptions, options: BenchOptions, image: bytes
) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        photograph = Path(folder) / "photograph.jpg"
        photograph.write_bytes(image)
        prompt = _prompt(model) if task == "generate" else []
        arguments: list[str] = {
            "caption": [str(photograph)],
            "answer": [str(photograph), QUESTION],
            "match": [str(photograph), *SENTENCES],
            "embed": [str(photograph), *SENTENCES],
            "classify": [str(photograph), "--labels", ", ".join(LABELS)],
            "generate": [*prompt, "-o", f"{folder}/picture.png", "--seed", "0", *_paint_options(options)],
            "search": [SENTENCES[0], folder, "--index", f"{folder}/index.npz"],
        }[task]
        command = [sys.executable, "-c", "from vlrt.cli import main; main()", "run", task, *arguments]
        command += ["--device", engine.device, "--threads", str(engine.threads), *(["--model", model] if model else [])]
        return list(_timed(command, options.processes))


def _prompt(model: str | None) -> list[str]:
    """The prompt, or the class, of a bundle that paints."""
    spec = zoo.resolve(model, "generate").manifest.diffusion
    if spec is not None and spec.label_input:
        return ["--label", "0"]
    return [SENTENCES[0]] if spec is None or spec.prompts else []


def _paint_options(options: BenchOptions) -> list[str]:
    return [part for name, value in options.decode.items() for part in (f"--{name}", str(value))]


def _timed(command: Sequence[str], times: int) -> Iterator[float]:
    for attempt in range(times + 1 if times else 0):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            why = lines[0].removeprefix("error: ") if lines else f"exit code {done.returncode}"
            raise VlrtError(f"the command under test failed: {why}", " ".join(command[3:]))
        if attempt:  # the first one warms the disk
            yield time.perf_counter() - started


def synthetic_jpeg() -> bytes:
    """A photograph of 640x480 that is always the same."""
    stream = io.BytesIO()
    synthetic_picture().resize((640, 480)).save(stream, format="JPEG", quality=90)
    return stream.getvalue()


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def machine() -> dict[str, str]:
    """What a reader must know of the machine to compare figures."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0
    return {"processor": name, "processors": str(count), "platform": platform.platform()}


def versions() -> dict[str, str]:
    """Versions of ourselves, Python and what does the work."""
    found = {"vlrt": vlrt.__version__, "python": platform.python_version()}
    for package in ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "Pillow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
