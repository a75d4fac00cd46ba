"""Answering: a photograph and a question in, a short answer out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, Hypothesis, generate, score_continuations
from vlrt.engines import Array, EngineOptions
from vlrt.errors import BundleError, UsageError
from vlrt.image import ImageLike
from vlrt.image_decoder import ImageDecoder
from vlrt.manifest import AnswerSpec


@dataclass(frozen=True)
class Answer:
    """One answer to one question.

    Args:
        text: the answer.
        score: what the search ranks by; of a given answer, the sum of its tokens' log-probabilities.
        tokens: generated ids, the end id included where the answer ended.
        alternatives: the further hypotheses, or the other given answers, best first (only on the best one).
        timings: seconds by stage for the batch this answer came from: ``read``, ``encode``, ``decode``.
    """

    text: str
    score: float
    tokens: tuple[int, ...] = ()
    alternatives: tuple[Answer, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A photograph as a model keeps it: pixels, and outputs of its image graphs by name [1, …]."""

    arrays: Mapping[str, Array]


class Answerer(ImageDecoder):
    """Answers questions about photographs with the decoder of a bundle.

    Args:
        bundle: one that serves ``answer``.
        options: device and threads.
    """

    task = "answer"

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        super().__init__(bundle, options)
        if bundle.manifest.answer is None:
            raise BundleError(f"the bundle `{bundle.name}` has no answer section", "export it again")
        self.answer_spec: AnswerSpec = bundle.manifest.answer

    def __call__(
        self, photograph: ImageLike, question: str, answers: Iterable[str] | None = None, **options: Any
    ) -> Answer:
        """The answer to a question about a photograph.

        Args:
            photograph: path, bytes, Pillow image or array.
            question: a sentence; what exceeds the model's context is cut, with a warning.
            answers: choose among these instead of generating freely.
            options: fields of `vlrt.decode.DecodeOptions` that differ from the bundle's defaults.

        Raises:
            ImageError: not a readable image.
            UsageError: an empty question or answer, options beside `answers`, or one that cannot be meant.
        """
        return self.batch([photograph], [question], answers, **options)[0]

    def batch(
        self,
        photographs: Sequence[ImageLike],
        questions: Sequence[str],
        answers: Iterable[str] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """The answer to each photograph's question, decoded together."""
        if len(photographs) != len(questions):
            raise UsageError(f"there are {len(questions)} questions for {len(photographs)} photographs")
        chosen, given = self._chosen(answers, options)
        if not photographs:
            return []
        started = time.perf_counter()
        asked = self._read(questions)
        loaded = [pictures.load(photograph) for photograph in photographs]
        pixels = pictures.preprocess(loaded, self.image_spec)
        read = time.perf_counter()
        seen = self._encode(pixels)
        encoded = time.perf_counter()
        timings = {"read": read - started, "encode": encoded - read}
        return self._answers(seen, asked, given, chosen, timings)

    def look(self, photograph: ImageLike) -> Seen:
        """Runs once what a photograph alone decides, for any number of questions.

        Raises:
            ImageError: not a readable image.
        """
        return Seen(self._encode(pictures.preprocess([pictures.load(photograph)], self.image_spec)))

    def ask(self, seen: Seen, question: str, answers: Iterable[str] | None = None, **options: Any) -> Answer:
        """The answer to a question about a photograph that was looked at; as calling, without its image encoder."""
        chosen, given = self._chosen(answers, options)
        return self._answers(seen.arrays, self._read([question]), given, chosen, {"read": 0.0, "encode": 0.0})[0]

    def _chosen(
        self, answers: Iterable[str] | None, options: Mapping[str, Any]
    ) -> tuple[DecodeOptions, list[str] | None]:
        chosen, given = self.options(**options), None if answers is None else _distinct(answers)
        if given is not None and options:
            raise UsageError(f"`{next(iter(options))}` is of the search, which given answers do without")
        return chosen, given

    def _encode(self, pixels: Array) -> dict[str, Array]:
        """The pixels, and outputs of those graphs of the chain that read nothing but the photograph."""
        given = {self.image_spec.input: pixels}
        return given | self.sessions.run_chain(self._image_roles, given)

    @cached_property
    def _image_roles(self) -> list[str]:
        known = {self.image_spec.input}
        roles = []
        for role in self.spec.chain:
            graph = self.bundle.manifest.graphs[role]
            if {tensor.name for tensor in graph.inputs} <= known:
                known |= {tensor.name for tensor in graph.outputs}
                roles.append(role)
        return roles

    def _answers(
        self,
        seen: Mapping[str, Array],
        asked: tuple[dict[str, Array], list[list[int]]],
        given: Sequence[str] | None,
        chosen: DecodeOptions,
        timings: dict[str, float],
    ) -> list[Answer]:
        started = time.perf_counter()
        arrays, prompts = asked
        rest = [role for role in self.spec.chain if role not in self._image_roles]
        initial = {**seen, **self.sessions.run_chain(rest, {**seen, **arrays})}
        encoded = time.perf_counter()
        if given is None:
            hypotheses = generate(self.step_model, initial, chosen, prompts=prompts)
            if not all(hypotheses):
                what = f"the model of `{self.bundle.name}` gives no word a probability, so there is no answer"
                raise BundleError(what, "relax the options that forbid words, or export the bundle again")
            ranked = [[self._answer(h) for h in image] for image in hypotheses]
        else:
            ranked = [self._rank(_one(initial, i), prompt, given) for i, prompt in enumerate(prompts)]
        timings = {
            "read": timings["read"],
            "encode": timings["encode"] + encoded - started,
            "decode": time.perf_counter() - encoded,
        }
        return [Answer(a[0].text, a[0].score, a[0].tokens, tuple(a[1:]), timings) for a in ranked]

    def _read(self, questions: Sequence[str]) -> tuple[dict[str, Array], list[list[int]]]:
        """The questions as inputs of the chain, and as what the decoder continues."""
        if not all(question.strip() for question in questions):
            raise UsageError("an empty question has no answer", 'vlrt run answer photo.jpg "what is this?"')
        asked = [self.answer_spec.template.replace("{}", question) for question in questions]
        return {**self.prompt_reader.arrays(asked)}, self.prompt_reader.prompts(self.spec.start_ids, asked)

    def _answer(self, hypothesis: Hypothesis) -> Answer:
        ids = tuple(int(i) for i in hypothesis.tokens)
        spoken = ids[:-1] if ids and ids[-1] in self.spec.end_ids else ids
        return Answer(self.codec.decode(spoken), float(hypothesis.score), ids)

    def _rank(self, initial: Mapping[str, Array], prompt: Sequence[int], answers: Sequence[str]) -> list[Answer]:
        """Given answers, likeliest first.

        Source: salesforce/BLIP ``BLIP_VQA.rank_answer`` with every answer among its candidates.
        """
        ids = [(*self.codec.prompt_ids((), answer), self.spec.end_ids[0]) for answer in answers]
        scores = score_continuations(self.step_model, initial, prompt, ids)
        found = [Answer(text, score, tokens) for text, score, tokens in zip(answers, scores, ids)]
        return sorted(found, key=lambda answer: -answer.score)


def _distinct(answers: Iterable[str]) -> list[str]:
    found = list(dict.fromkeys(answer.strip() for answer in answers))
    if not found or not all(found):
        raise UsageError("an empty answer cannot be ranked", '--answers "one, two, three"')
    return found


def _one(initial: Mapping[str, Array], image: int) -> dict[str, Array]:
    return {name: array[image : image + 1] for name, array in initial.items()}
