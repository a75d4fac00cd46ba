"""OpenVINO's own runtime on the bundle's image graph, as it comes: with the precision it chooses for the processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlrt.benchmark_job import Job, Point, Runner, SkippedError
from vlrt.bundle import Bundle


class Embedding:
    """Embeddings of photographs by one compiled graph."""

    libraries: Sequence[str] = ("openvino", "numpy")

    def __init__(self, job: Job, compiled: Any, output: str) -> None:
        self.job, self.compiled, self.output = job, compiled, output
        self.note = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())

    def run(self, point: Point) -> list[Any]:
        """Numbers of the first photograph's embedding."""
        found = self.compiled(self.job.arrays(point.batch)["pixels"])
        return [float(value) for value in found[self.output][0]]


def prepare(job: Job) -> None:
    """It reads the bundle's own graph."""
    _graph(job)


def load(job: Job) -> Runner:
    """The compiled graph."""
    import openvino

    path, output = _graph(job)
    settings = {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY"}
    return Embedding(job, openvino.Core().compile_model(str(path), "CPU", settings), output)


def _graph(job: Job) -> tuple[Path, str]:
    bundle = Bundle.open(Path(job.folder))
    spec = bundle.manifest.embed
    if job.task != "embed" or spec is None or len(spec.image) != 1:
        raise SkippedError("it has no task of its own to compare with; `--device openvino:CPU` runs ours on its engine")
    return bundle.graph(spec.image[0])[1], spec.image_output
