"""Optimum's ONNX Runtime classes, on the graphs that Optimum itself exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlrt.benchmark_job import Job, Runner, SkippedError
from vlrt_export.peers import transformers_peer
from vlrt_export.peers.transformers_peer import Decoding


def prepare(job: Job) -> None:
    """Lets Optimum export the same weights."""
    _check(job)
    transformers_peer.prepare(job)
    source = job.source if job.source != "random" else str(Path(job.prepared) / "transformers")
    _classes().from_pretrained(source, export=True).save_pretrained(_folder(job))


def load(job: Job) -> Runner:
    """The exported model."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = job.threads
    runner = Decoding(job, _classes().from_pretrained(_folder(job), session_options=settings))
    runner.libraries = ("optimum-onnx", "optimum", "torch", "transformers", "onnxruntime", "Pillow")
    runner.note = "fp32, ONNX Runtime"
    return runner


def _check(job: Job) -> None:
    if (job.task, job.family) != ("caption", "vision-encoder-decoder"):
        raise SkippedError(f"it exports no `{job.family}` for the task `{job.task}`")


def _folder(job: Job) -> Path:
    return Path(job.prepared) / "optimum"


def _classes() -> Any:
    from optimum.onnxruntime import ORTModelForVision2Seq

    return ORTModelForVision2Seq
