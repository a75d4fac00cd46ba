"""What one side of a comparison is told, what it answers, and how: a line of JSON each way."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlrt.errors import VlrtError
from vlrt.install_size import install_size

QUESTION = "what is in the picture?"
"""What every side is asked."""


class SkippedError(VlrtError):
    """A side cannot do this job: another family, a library that is not installed, weights that are not at hand."""


@dataclass(frozen=True)
class Job:
    """The same work for every side.

    Args:
        task: ``caption``, ``answer``, ``embed`` or ``generate``.
        folder: of our bundle.
        model, family: the bundle's.
        source: of the weights: a hub id, a folder, or ``random``.
        seed: of random weights.
        device: ours; the others compute on the processor.
        threads: of every side.
        tokens: of a caption or answer; no more and no fewer.
        inputs: an ``.npz`` file with what the models read: `pixels` [N, 3, H, W], and `input_ids` [N, L] of questions.
        prompt: of a picture to paint.
        steps: of painting it.
        prepared: folder where a side keeps the weights in its own layout; each has one below it.
    """

    task: str
    folder: str
    model: str
    family: str
    source: str
    seed: int
    device: str
    threads: int
    tokens: int
    inputs: str
    prompt: str
    steps: int
    prepared: str

    def arrays(self, batch: int) -> dict[str, NDArray[Any]]:
        """The first `batch` rows of every input."""
        return {name: array[:batch] for name, array in _arrays(self.inputs).items()}


@dataclass(frozen=True)
class Point:
    """One kind of work: photographs at once, and beams of the search."""

    batch: int = 1
    beams: int = 1

    @property
    def name(self) -> str:
        """In words."""
        return f"batch {self.batch}" if self.beams == 1 else f"batch {self.batch}, {self.beams} beams"


@dataclass(frozen=True)
class Side:
    """What a side says of itself when it is done.

    Args:
        peak_mb: largest resident memory, in 10^6 bytes.
        install_mb, packages: of the libraries it needs, and how many these are.
        versions: of the libraries that do its work.
        note: precision and whatever else decides the comparison.
    """

    peak_mb: float
    install_mb: float
    packages: int
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""


@cache
def _arrays(path: str) -> dict[str, NDArray[Any]]:
    """Read once: reading is no side's work."""
    with np.load(path) as every:
        return {name: every[name] for name in every.files}


class Runner(Protocol):
    """One side with its model loaded.

    Args:
        libraries: distributions that it needs; the first ones do the work.
        note: see `Side`.
    """

    libraries: Sequence[str]
    note: str

    def run(self, point: Point) -> list[Any]:
        """Does the work once; tokens, or numbers, of the first photograph."""


def serve(job: Job, load: Callable[[Job], Runner]) -> None:
    """The life of one side: it loads, does what each line asks, and says in the end what it took.

    Whatever a library prints goes to the standard error, so that only answers stand on the standard output.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    started = time.perf_counter()
    try:
        runner = load(job)
    except VlrtError as error:
        _say(answers, {"skipped": error.what})
        return
    _say(answers, {"load": time.perf_counter() - started})
    for line in sys.stdin:
        asked = json.loads(line)
        if not asked:
            break
        point = Point(**asked)
        started = time.perf_counter()
        result = runner.run(point)
        _say(answers, {"seconds": time.perf_counter() - started, "result": result})
    _say(answers, asdict(_describe(runner)))


def _describe(runner: Runner) -> Side:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    size, packages = install_size(runner.libraries)
    return Side(round(peak / 1e6, 1), size, packages, versions(runner.libraries), runner.note)


def picture_numbers(pixels: NDArray[np.uint8]) -> list[float]:
    """A few hundred evenly spaced numbers of a picture [H, W, 3], in −1 to 1."""
    flat = pixels.ravel().astype(np.float64) / 127.5 - 1
    return [round(float(value), 4) for value in flat[np.linspace(0, flat.size - 1, min(flat.size, 600)).astype(int)]]


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def read_job(path: str) -> Job:
    """The job that a file holds."""
    return Job(**json.loads(Path(path).read_text("utf-8")))


def _say(answers: IO[str], value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()
