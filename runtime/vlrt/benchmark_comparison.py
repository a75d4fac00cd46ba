"""What a comparison with other libraries is asked, and what it finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vlrt.benchmark_job import Point, Side
from vlrt.errors import UsageError

OURS = "vlrt"
PEERS = {
    "transformers": "transformers",
    "diffusers": "diffusers",
    "optimum": "optimum",
    "openvino": "openvino",
    "onnxruntime-genai": "onnxruntime_genai",
    "ctranslate2": "ctranslate2",
}
"""Sides by name -> the module that shows whether one is installed."""


@dataclass(frozen=True)
class VersusOptions:
    """How a comparison is made.

    Args:
        peers: names of `PEERS`.
        source: checkpoint of the bundle's weights; empty: the one that the bundle names.
        batches, beams: what is measured: every batch with one beam, every number of beams with one photograph.
        rounds: runs of each side at each point, after one that is not counted.
        tokens: of a caption or answer, no more and no fewer.
        steps: of a picture.
    """

    peers: tuple[str, ...]
    source: str = ""
    batches: tuple[int, ...] = (1, 2, 4)
    beams: tuple[int, ...] = (1, 3, 5)
    rounds: int = 7
    tokens: int = 20
    steps: int = 10

    def __post_init__(self) -> None:
        for peer in self.peers:
            if peer not in PEERS:
                raise UsageError(f"there is no side `{peer}`", "one of " + ", ".join(PEERS))
        if min(self.rounds, self.tokens, self.steps) < 1 or min((*self.batches, *self.beams), default=0) < 1:
            raise UsageError("a comparison needs rounds, tokens, steps, batches and beams above zero")

    def points(self, decodes: bool) -> list[Point]:
        """What is measured, each once."""
        beams = self.beams if decodes else (1,)
        return list(dict.fromkeys([*(Point(1, b) for b in beams), *(Point(b) for b in self.batches)]))


@dataclass(frozen=True)
class Figure:
    """One side at one point: milliseconds, and how many times as long as ours the median is."""

    side: str
    point: Point
    median: float
    low: float
    high: float
    ratio: float
    agrees: bool


@dataclass(frozen=True)
class Comparison:
    """Everything that was found out.

    Args:
        figures: side by side at each point; `low` and `high` are the quartiles.
        sides: what each took, by name.
        first_ms: from the start of the process to the first result.
        load_ms: of which loading, once the libraries were there.
        skipped: sides that could not take part, and why.
        bundle_mb: size of our bundle.
    """

    task: str
    bundle: str
    threads: int
    tokens: int
    rounds: int
    figures: list[Figure]
    sides: dict[str, Side]
    first_ms: dict[str, float]
    load_ms: dict[str, float]
    skipped: dict[str, str]
    bundle_mb: float

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)
