"""The gate for decoders of text: the next token under fp32's own sequences, answers, and BLEU and CIDEr of captions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from PIL import Image

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, Hypothesis, StepModel, generate
from vlrt.engines import Array
from vlrt.errors import VlrtError
from vlrt.manifest import DecodeSpec, Measurement
from vlrt.text import PromptReader, TextCodec
from vlrt_export.calibration import Calibration
from vlrt_export.gate_metrics import Limits, reference, register
from vlrt_export.metrics import score_captions
from vlrt_export.trial import TrialSessions

_FORCED = 12
"""Photographs whose sequences are followed token by token."""

_LONGEST = 24
"""Tokens of a sequence that are followed."""

_SCORED = 100
"""Photographs from which on BLEU and CIDEr tell more than chance: of 32, their CIDEr moved by 7 % with captions that
were as good on 500."""

_CLEAR = 0.1
"""Nats between fp32's best and second token below which it chooses by chance as much as by knowledge."""


@dataclass(frozen=True)
class Spoken:
    """What a decoder says about the held-out photographs.

    Args:
        texts: of all photographs, with the bundle's own options.
        greedy: ids that fp32 chooses greedily for the first photographs.
        followed: what this decoder would choose at each place, all before it being fp32's.
    """

    texts: Sequence[str]
    greedy: Sequence[Sequence[int]]
    followed: Sequence[Sequence[Choice]]


@dataclass(frozen=True)
class Choice:
    """The likeliest token, and by how many nats it is likelier than the second."""

    token: int
    margin: float


@register("decode")
class Decoding:
    """Captions and answers."""

    def observe(self, bundle: Bundle, sessions: TrialSessions, data: Calibration, expected: Spoken | None) -> Spoken:
        speaker = _Speaker(bundle, sessions)
        texts, greedy, followed = [], [], []
        for number, (photograph, question) in enumerate(zip(data.held_out, cycle(data.questions))):
            initial, prompt = speaker.look(photograph, question)
            texts.append(speaker.say(initial, prompt))
            if number < _FORCED:
                with sessions.unrecorded():
                    greedy.append(expected.greedy[number] if expected else speaker.greedy(initial, prompt))
                    followed.append(speaker.follow(initial, prompt, greedy[-1]))
        return Spoken(texts, greedy, followed)

    def compare(self, expected: Spoken, found: Spoken, data: Calibration, limits: Limits) -> Iterator[Measurement]:
        share, clear, places = agreement(found.followed, expected.followed)
        what, version, note = reference(data)
        note = f"{clear} of {places} tokens where fp32's best leads by {_CLEAR:g} nats; {note}"
        scored = len(data.references) >= _SCORED
        if data.references and not scored:
            note += f"; BLEU and CIDEr are not judged by fewer than {_SCORED}"
        ending = (round(share, 4), limits["token_agreement"], what, version, note)
        yield Measurement("gate, decoder", "share of tokens chosen alike", *ending, better="higher")
        if scored:
            yield from _scores(expected, found, data, limits)


def agreement(found: Sequence[Sequence[Choice]], expected: Sequence[Sequence[Choice]]) -> tuple[float, int, int]:
    """Share of equal choices where the expected one is clear (one where none is), how many are, and of how many."""
    pairs = [pair for one in zip(found, expected, strict=True) for pair in zip(*one)]
    alike = [ours.token == theirs.token for ours, theirs in pairs if theirs.margin >= _CLEAR]
    return sum(alike) / len(alike) if alike else 1.0, len(alike), len(pairs)


def _scores(expected: Spoken, found: Spoken, data: Calibration, limits: Limits) -> Iterator[Measurement]:
    references = {str(i): list(texts) for i, texts in enumerate(data.references)}
    ours, theirs = (score_captions(dict(zip(references, spoken.texts)), references) for spoken in (found, expected))
    for metric, value, full in (("BLEU-4", ours.bleu[3], theirs.bleu[3]), ("CIDEr-D", ours.cider, theirs.cider)):
        limit = full * (1 - limits["caption_loss"])
        what, version, note = reference(data)
        note = f"{full:.4g} in fp32; {note}"
        yield Measurement("gate, captions", metric, round(value, 4), round(limit, 4), what, version, note, "higher")


class _Speaker:
    """A bundle's decoder on given sessions."""

    def __init__(self, bundle: Bundle, sessions: TrialSessions) -> None:
        described = bundle.manifest
        if described.decode is None or described.image is None:
            raise VlrtError(
                f"`{bundle.name}` decodes, but not from photographs", "reduced precision cannot judge it yet"
            )
        self.spec: DecodeSpec = described.decode
        self.image, self.answer = described.image, described.answer
        self.sessions = sessions
        self.step = StepModel.open(self.spec, sessions.get)
        self.codec = TextCodec.open(bundle)
        self.reader = PromptReader(bundle, self.codec)

    def look(self, photograph: Image.Image, question: str) -> tuple[dict[str, Array], list[int]]:
        """The chain's outputs for one photograph and question, and the decoder's prompt."""
        arrays: dict[str, Array] = {self.image.input: pictures.preprocess([photograph], self.image)}
        prompt = list(self.spec.start_ids)
        if self.answer:
            asked = self.answer.template.replace("{}", question)
            arrays |= self.reader.arrays([asked])
            (prompt,) = self.reader.prompts(prompt, [asked])
        return self.sessions.run_chain(self.spec.chain, arrays), prompt

    def say(self, initial: Mapping[str, Array], prompt: list[int]) -> str:
        (best,) = self._generate(initial, prompt, do_sample=False)
        return self.codec.decode([int(token) for token in best.tokens if token not in self.spec.end_ids])

    def greedy(self, initial: Mapping[str, Array], prompt: list[int]) -> list[int]:
        (best,) = self._generate(initial, prompt, num_beams=1, do_sample=False)
        return [int(token) for token in best.tokens[:_LONGEST]]

    def follow(self, initial: Mapping[str, Array], prompt: list[int], given: Sequence[int]) -> list[Choice]:
        """The likeliest token at each place of a sequence, where those before it are given."""
        found = []
        for place in range(len(given)):
            least = max(0, int(self.spec.defaults.get("min_new_tokens", 0)) - place)
            options = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 1, "length_penalty": 0.0}
            first, *second = self._generate(
                initial, [*prompt, *given[:place]], do_sample=False, min_new_tokens=min(1, least), **options
            )
            margin = first.score - second[0].score if second else math.inf
            found.append(Choice(int(first.tokens[0]), float(margin)))
        return found

    def _generate(self, initial: Mapping[str, Array], prompt: list[int], **options: Any) -> list[Hypothesis]:
        chosen = DecodeOptions.from_manifest(self.spec.defaults, **({"num_return_sequences": 1} | options))
        return generate(self.step, initial, chosen, prompts=[prompt])[0]
