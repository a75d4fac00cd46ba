"""OpenVINO's own runtime on the bundle's image graphs, as it comes: with the precision it chooses for the processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlrt.benchmark_job import Job, Point, Runner, SkippedError
from vlrt.bundle import Bundle
from vlrt.manifest import EmbedSpec, ImageSpec


class Embedding:
    """Embeddings of photographs by compiled graphs, one after the other."""

    libraries: Sequence[str] = ("openvino", "numpy")

    def __init__(self, job: Job, graphs: Sequence[Any], names: tuple[str, str]) -> None:
        self.job, self.graphs = job, graphs
        self.input, self.output = names
        self.note = str(graphs[0].get_property("INFERENCE_PRECISION_HINT").to_string())

    def run(self, point: Point) -> list[Any]:
        """Numbers of the first photograph's embedding."""
        known = {self.input: self.job.arrays(point.batch)["pixels"]}
        for graph in self.graphs:
            found = graph({port.any_name: known[port.any_name] for port in graph.inputs})
            known |= {port.any_name: value for port, value in found.items()}
        return [float(value) for value in known[self.output][0]]


def prepare(job: Job) -> None:
    """It reads the bundle's own graphs."""
    _sections(job)


def load(job: Job) -> Runner:
    """The compiled graphs."""
    import openvino

    bundle, spec, image = _sections(job)
    core, settings = openvino.Core(), {"INFERENCE_NUM_THREADS": job.threads, "PERFORMANCE_HINT": "LATENCY"}
    graphs = [core.compile_model(str(bundle.graph(role)[1]), "CPU", settings) for role in spec.image]
    return Embedding(job, graphs, (image.input, spec.image_output))


def _sections(job: Job) -> tuple[Bundle, EmbedSpec, ImageSpec]:
    bundle = Bundle.open(Path(job.folder))
    spec, image = bundle.manifest.embed, bundle.manifest.image
    if job.task != "embed" or spec is None or image is None:
        raise SkippedError("it has no task of its own to compare with; `--device openvino:CPU` runs ours on its engine")
    return bundle, spec, image
