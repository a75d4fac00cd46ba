"""The gate for pictures as codes: what a codec loses of photographs, and which codes a decoder would write next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlrt.bundle import Bundle
from vlrt.codec import Codes, PictureCodec, Pixels
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines import Array
from vlrt.manifest import DecodeSpec, Measurement
from vlrt.text import TextCodec
from vlrt_export.calibration import Calibration
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
        followed: codes that this decoder chooses where all before them are fp32's.
    """

    greedy: Sequence[Sequence[int]]
    followed: Sequence[Sequence[int]]


@register("image_tokens")
class Drawing:
    """Sentences to codes, guided as the bundle says."""

    def observe(self, bundle: Bundle, sessions: TrialSessions, data: Calibration, expected: Drawn | None) -> Drawn:
        drawer = _Drawer(bundle, sessions)
        greedy, followed = [], []
        for number, sentence in enumerate(data.sentences[:_PROMPTS]):
            asked, nothing = drawer.conditions(sentence)
            own = drawer.draw(asked, nothing, (), _FOLLOWED)
            greedy.append(expected.greedy[number] if expected else own)
            with sessions.unrecorded():
                places = range(len(greedy[-1]))
                followed.append([drawer.draw(asked, nothing, greedy[-1][:place], 1)[0] for place in places])
        return Drawn(greedy, followed)

    def compare(self, expected: Drawn, found: Drawn, data: Calibration, limits: Limits) -> Iterator[Measurement]:
        pairs = [pair for one in zip(expected.followed, found.followed) for pair in zip(*one)]
        share = sum(ours == theirs for ours, theirs in pairs) / max(len(pairs), 1)
        what, version, _ = reference(data)
        ending = (limits["token_agreement"], what, version, f"{len(pairs)} codes of {len(found.followed)} sentences")
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

    def draw(
        self, asked: Mapping[str, Array], nothing: Mapping[str, Array], begun: Sequence[int], codes: int
    ) -> list[int]:
        """The likeliest codes that follow."""
        options = DecodeOptions(max_new_tokens=codes, guidance_scale=self.guidance)
        prompt = [*self.spec.start_ids, *begun]
        found = generate(self.step, asked, options, prompts=[prompt], unconditional=nothing)
        return [int(token) for token in found[0][0].tokens]


def _size(codec: PictureCodec) -> tuple[int, int]:
    factor = codec.spec.factor
    rows, columns = codec.spec.grid or (max(1, _SIDE // factor),) * 2
    return rows * factor, columns * factor


def _counted(codec: PictureCodec) -> Codes:
    rows, columns = codec.spec.grid or (4, 4)
    return np.arange(rows * columns, dtype=np.int64).reshape(1, rows, columns) % codec.spec.codebook
