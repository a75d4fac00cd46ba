"""The gate for pictures as codes: what a codec loses of photographs, and which codes a decoder would write next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlrt.bundle import Bundle
from vlrt.codec import Codes, PictureCodec, Pixels
from vlrt.decode import DecodeOptions, Hypothesis, StepModel, generate
from vlrt.engines import Array
from vlrt.manifest import DecodeSpec, Measurement
from vlrt.text import TextCodec
from vlrt_export.calibration import Calibration
from vlrt_export.gate_captions import Choice, agreement
from vlrt_export.gate_metrics import Limits, reference, register
from vlrt_export.trial import TrialSessions

_PICTURES = 16
"""Photographs that are turned into codes and back."""

_SIDE = 160
"""Pixels, before they are rounded down to whole codes, of photographs for codecs of any size."""

_PROMPTS = 4
_FOLLOWED = 16
"""Codes of each prompt that are followed."""


@dataclass(frozen=True)
class Coded:
    """What a codec makes of the held-out photographs.

    Args:
        codes: of each; of a codec that only paints, codes that are simply counted.
        losses: mean squared errors of the reconstructions, empty where there are none.
        painted: pictures of the codes that fp32 gives.
    """

    codes: Sequence[Codes]
    losses: Sequence[float]
    painted: Sequence[Pixels]


@register("codec")
class Coding:
    """Photographs to codes and back."""

    def observe(self, bundle: Bundle, sessions: TrialSessions, data: Calibration, expected: Coded | None) -> Coded:
        codec = PictureCodec(bundle, sessions=sessions)
        if not codec.spec.tokenizer:
            codes = _counted(codec)
            return Coded([codes], [], [codec.decode(codes)])
        codes_of, losses, painted = [], [], []
        for number, photograph in enumerate(data.held_out[:_PICTURES]):
            fitted = codec.fit(photograph, _size(codec))
            codes_of.append(codec.encode([fitted]))
            if codec.spec.detokenizer:
                losses.append(float(np.square(codec.decode(codes_of[-1]) - codec.pixels([fitted])).mean()))
                with sessions.unrecorded():
                    painted.append(codec.decode(expected.codes[number] if expected else codes_of[-1]))
        return Coded(codes_of, losses, painted)

    def compare(self, expected: Coded, found: Coded, data: Calibration, limits: Limits) -> Iterator[Measurement]:
        what, version, note = reference(data)
        alike = np.mean([np.mean(ours == theirs) for ours, theirs in zip(found.codes, expected.codes)])
        if expected.losses:
            grown = float(np.mean(found.losses) / np.mean(expected.losses) - 1)
            note = f"{alike:.1%} of the codes alike; {note}"
            ending = (limits["codec_loss"], what, version, note)
            yield Measurement("gate, codec", "growth of the reconstruction's squared error", grown, *ending)
        if expected.painted:
            gaps = [float(np.square(ours - theirs).mean()) for ours, theirs in zip(found.painted, expected.painted)]
            psnr = -10 * np.log10(max(*gaps, 1e-10))
            ending = (limits["picture_psnr"], what, version, "pictures of fp32's codes")
            yield Measurement("gate, pictures", "least PSNR", float(psnr), *ending, better="higher")


@dataclass(frozen=True)
class Drawn:
    """What a decoder draws.

    Args:
        greedy: codes that fp32 chooses greedily for each prompt.
        followed: what this decoder would choose at each place, all before it being fp32's.
    """

    greedy: Sequence[Sequence[int]]
    followed: Sequence[Sequence[Choice]]


@register("image_tokens")
class Drawing:
    """Sentences to codes, guided as the bundle says."""

    def observe(self, bundle: Bundle, sessions: TrialSessions, data: Calibration, expected: Drawn | None) -> Drawn:
        drawer = _Drawer(bundle, sessions)
        greedy, followed = [], []
        for number, sentence in enumerate(data.sentences[:_PROMPTS]):
            asked, nothing = drawer.conditions(sentence)
            own = drawer.draw(asked, nothing)
            greedy.append(expected.greedy[number] if expected else own)
            with sessions.unrecorded():
                followed.append(drawer.follow(asked, nothing, greedy[-1]))
        return Drawn(greedy, followed)

    def compare(self, expected: Drawn, found: Drawn, data: Calibration, limits: Limits) -> Iterator[Measurement]:
        share, clear, places = agreement(found.followed, expected.followed)
        what, version, _ = reference(data)
        note = f"{clear} of {places} codes, chosen clearly in fp32, of {len(found.followed)} sentences"
        ending = (limits["token_agreement"], what, version, note)
        yield Measurement("gate, drawing", "share of codes chosen alike", round(share, 4), *ending, better="higher")


class _Drawer:
    """A bundle's decoder of codes on given sessions."""

    def __init__(self, bundle: Bundle, sessions: TrialSessions) -> None:
        if bundle.manifest.decode is None:
            raise ValueError("image tokens have a decode section beside them")
        self.spec: DecodeSpec = bundle.manifest.decode
        self.sessions, self.text = sessions, TextCodec.open(bundle)
        self.step = StepModel.open(self.spec, sessions.get)
        self.guidance = float(self.spec.defaults.get("guidance_scale", 1.0))

    def conditions(self, sentence: str) -> tuple[dict[str, Array], dict[str, Array]]:
        """What the chain makes of a sentence and of none."""
        ids = self.text.pad([self.text.prompt_row(text) for text in (sentence, "")])
        found = self.sessions.run_chain(self.spec.chain, {self.text.spec.input: ids})
        asked, nothing = ({name: array[lane : lane + 1] for name, array in found.items()} for lane in (0, 1))
        return asked, nothing

    def draw(self, asked: Mapping[str, Array], nothing: Mapping[str, Array]) -> list[int]:
        """The first codes, each the likeliest."""
        (best,) = self._generate(asked, nothing, (), max_new_tokens=_FOLLOWED)
        return [int(token) for token in best.tokens]

    def follow(self, asked: Mapping[str, Array], nothing: Mapping[str, Array], given: Sequence[int]) -> list[Choice]:
        """The likeliest code at each place of a picture, where those before it are given."""
        two, found = {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.0}, []
        for place in range(len(given)):
            first, second = self._generate(asked, nothing, given[:place], max_new_tokens=1, **two)
            found.append(Choice(int(first.tokens[0]), float(first.score - second.score)))
        return found

    def _generate(
        self, asked: Mapping[str, Array], nothing: Mapping[str, Array], begun: Sequence[int], **options: Any
    ) -> list[Hypothesis]:
        prompt = [*self.spec.start_ids, *begun]
        chosen = DecodeOptions(guidance_scale=self.guidance, **options)
        return generate(self.step, asked, chosen, prompts=[prompt], unconditional=nothing)[0]


def _size(codec: PictureCodec) -> tuple[int, int]:
    factor = codec.spec.factor
    rows, columns = codec.spec.grid or (max(1, _SIDE // factor),) * 2
    return rows * factor, columns * factor


def _counted(codec: PictureCodec) -> Codes:
    rows, columns = codec.spec.grid or (4, 4)
    return np.arange(rows * columns, dtype=np.int64).reshape(1, rows, columns) % codec.spec.codebook
