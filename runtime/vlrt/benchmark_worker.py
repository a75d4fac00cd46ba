"""Our own side of a comparison, in a process of its own: ``python -m vlrt.benchmark_worker JOB``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlrt.benchmark_job import QUESTION, Job, Point, Runner, SkippedError, picture_numbers, read_job, serve
from vlrt.bundle import Bundle
from vlrt.decode import generate
from vlrt.embedding import DualEncoder
from vlrt.engines import EngineOptions
from vlrt.image_decoder import ImageDecoder
from vlrt.tasks.answer import Answerer
from vlrt.tasks.caption import Captioner
from vlrt.tasks.generate import Painter

LIBRARIES = ("vlrt", "onnxruntime", "numpy", "Pillow", "tokenizers", "click", "PyYAML")


class Decoding:
    """Captions and answers from pixels, of exactly as many tokens as the job says."""

    libraries: Sequence[str] = LIBRARIES

    def __init__(self, job: Job, task: ImageDecoder) -> None:
        self.job, self.task, self.note = job, task, _note(task.bundle, task.spec.roles)

    def run(self, point: Point) -> list[Any]:
        """Tokens of the first photograph."""
        task, length = self.task, self.job.tokens
        arrays = self.job.arrays(point.batch)
        arrays, prompts = self._read(arrays, point.batch)
        initial = task.sessions.run_chain(task.spec.chain, arrays)
        options = task.options(num_beams=point.beams, max_new_tokens=length, min_new_tokens=length)
        return list(map(int, generate(task.step_model, initial, options, prompts=prompts)[0][0].tokens))

    def _read(self, arrays: dict[str, Any], rows: int) -> tuple[dict[str, Any], list[list[int]]]:
        task, texts = self.task, [self._text()] * rows
        given = {task.image_spec.input: arrays["pixels"], **task.prompt_reader.arrays(texts)}
        return given, task.prompt_reader.prompts(task.spec.start_ids, texts)

    def _text(self) -> str:
        described = self.task.bundle.manifest.answer
        return described.template.replace("{}", QUESTION) if self.job.task == "answer" and described else ""


class Embedding:
    """Embeddings of photographs from pixels."""

    libraries: Sequence[str] = LIBRARIES

    def __init__(self, job: Job, encoder: DualEncoder) -> None:
        self.job, self.encoder, self.note = job, encoder, _note(encoder.bundle, encoder.spec.image)

    def run(self, point: Point) -> list[Any]:
        """Numbers of the first photograph's embedding."""
        return [float(value) for value in self.encoder.pixels(self.job.arrays(point.batch)["pixels"])[0]]


class Painting:
    """Pictures from a prompt or from noise, with every graph kept in memory."""

    libraries: Sequence[str] = LIBRARIES

    def __init__(self, job: Job, painter: Painter) -> None:
        self.job, self.painter = job, painter
        self.note = _note(painter.bundle, painter.spec.roles)

    def run(self, point: Point) -> list[Any]:
        """Evenly spaced numbers of the first picture, in −1 to 1."""
        stages = {stage.name: min(self.job.steps, stage.schedule.train_steps) for stage in self.painter.spec.stages}
        found = self.painter.batch(self.job.prompt, seed=0, count=point.batch, steps=stages)
        return picture_numbers(found[0].pixels)


def load(job: Job) -> Runner:
    """Opens the bundle for the job's task."""
    bundle, options = Bundle.open(Path(job.folder)), EngineOptions(job.device, job.threads)
    if job.task == "generate":
        return Painting(job, Painter(bundle, options, keep_loaded=True))
    if job.task == "embed":
        return Embedding(job, DualEncoder(bundle, options))
    if job.task in ("caption", "answer"):
        decoder = Captioner(bundle, options) if job.task == "caption" else Answerer(bundle, options)
        return Decoding(job, decoder)
    raise SkippedError(f"`{job.task}` is not compared with others")


def _note(bundle: Bundle, roles: Sequence[str]) -> str:
    return ", ".join(sorted({bundle.manifest.graphs[role].precision for role in roles}))


if __name__ == "__main__":
    serve(read_job(sys.argv[1]), load)
