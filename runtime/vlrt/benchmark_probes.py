"""What `vlrt bench` runs: a task of a bundle, with seconds by stage and between two decoder steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from vlrt.benchmark_job import QUESTION
from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.engines import EngineOptions, Sessions
from vlrt.image import load, preprocess
from vlrt.tasks.answer import Answerer
from vlrt.tasks.caption import Captioner
from vlrt.verify import SENTENCES

LABELS = ("a dog", "a cat", "a bicycle", "a car", "a person", "a tree", "a boat", "a house")


class Probe(Protocol):
    """A task with its graphs loaded.

    Args:
        sessions: of the task's graphs.
        steps: seconds between two steps of the loop, over all runs on one photograph; empty where there is none.
        result: of the last run, in words.
    """

    sessions: Sessions
    steps: list[float]
    result: str

    def run(self, photographs: Sequence[bytes]) -> dict[str, float]:
        """Does the task once; seconds by stage."""


def open_probe(task: str, bundle: Bundle, options: EngineOptions, decode: dict[str, Any]) -> Probe:
    """Loads a task of a bundle.

    Args:
        decode: options of the search, for captions and answers; of painting, for pictures.
    """
    if task == "caption":
        return CaptionProbe(bundle, options, decode)
    if task == "answer":
        return AnswerProbe(bundle, options, decode)
    if task == "generate":
        from vlrt.benchmark_painting import DrawProbe, PaintProbe

        return (DrawProbe if bundle.manifest.image_tokens else PaintProbe)(bundle, options, decode)
    return EmbedProbe(bundle, options, LABELS if task == "classify" else SENTENCES)


class CaptionProbe:
    """Captioning: read, encode, decode, and the time between two decoder steps."""

    def __init__(self, bundle: Bundle, options: EngineOptions, decode: dict[str, Any]) -> None:
        self.captioner = Captioner(bundle, options)
        for role in self.captioner.spec.roles:
            self.captioner.sessions.get(role)
        self.sessions = self.captioner.sessions
        self.decode = decode
        self.steps: list[float] = []
        self.result = ""

    def run(self, photographs: Sequence[bytes]) -> dict[str, float]:
        """Seconds by stage."""
        ticks: list[float] = []

        def tick() -> bool:
            ticks.append(time.perf_counter())
            return False

        found = self.captioner.batch(photographs, should_cancel=tick, **self.decode)
        if len(photographs) == 1:
            self.steps += [b - a for a, b in pairwise(ticks)]
        self.result = found[0].text
        return found[0].timings


class AnswerProbe:
    """Answering: read, encode and decode; the image is looked at anew in every run."""

    def __init__(self, bundle: Bundle, options: EngineOptions, decode: dict[str, Any]) -> None:
        self.answerer = Answerer(bundle, options)
        for role in self.answerer.spec.roles:
            self.answerer.sessions.get(role)
        self.sessions = self.answerer.sessions
        self.decode = decode
        self.steps: list[float] = []
        self.result = ""

    def run(self, photographs: Sequence[bytes]) -> dict[str, float]:
        """Seconds by stage."""
        found = self.answerer.batch(photographs, [QUESTION] * len(photographs), **self.decode)
        if len(photographs) == 1:
            self.steps.append(found[0].timings["decode"] / max(1, len(found[0].tokens)))
        self.result = found[0].text
        return found[0].timings


class EmbedProbe:
    """Everything built on a dual encoder: read, image, and the text of the task."""

    def __init__(self, bundle: Bundle, options: EngineOptions, sentences: Sequence[str]) -> None:
        self.encoder = DualEncoder(bundle, options)
        for role in (*self.encoder.spec.image, *self.encoder.spec.text):
            self.encoder.sessions.get(role)
        self.sessions = self.encoder.sessions
        self.sentences = sentences
        self.steps: list[float] = []
        self.result = ""

    def run(self, photographs: Sequence[bytes]) -> dict[str, float]:
        """Seconds by stage."""
        encoder = self.encoder
        marks = [time.perf_counter()]
        pixels = preprocess([load(photograph) for photograph in photographs], encoder.image_spec)
        marks.append(time.perf_counter())
        images = encoder.sessions.run_chain(encoder.spec.image, encoder.image_inputs(pixels))
        marks.append(time.perf_counter())
        texts = encoder.texts(self.sentences)
        marks.append(time.perf_counter())
        cosines = texts @ images[encoder.spec.image_output][0]
        self.result = f"{self.sentences[int(cosines.argmax())]} ({cosines.max():.3f})"
        return dict(zip(("read", "encode image", f"encode {len(texts)} texts"), np.diff(marks).tolist()))
