"""The gate for diffusion: pictures of the same prompts and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vlrt.bundle import Bundle
from vlrt.engines import Array, EngineOptions
from vlrt.manifest import Measurement
from vlrt.verify_painting import paint_goldens
from vlrt_export.calibration import Calibration
from vlrt_export.gate_metrics import Limits, reference, register
from vlrt_export.trial import TrialSessions

_PAINTED = 2
_STEPS = 8
"""Steps of each stage that pictures are compared after."""

Pictures = Sequence[NDArray[np.float32]]


@register("diffusion")
class Painting:
    """Pictures in [0, 1], painted in a few steps."""

    def observe(
        self, bundle: Bundle, sessions: TrialSessions, data: Calibration, expected: Pictures | None
    ) -> Pictures:
        found = []
        for seed, (prompt, photograph) in enumerate(zip(data.sentences[:_PAINTED], data.held_out)):
            given = (bundle, EngineOptions(), prompt, photograph)
            painted = paint_goldens(*given, sessions=sessions, seed=seed, most_steps=_STEPS)
            found.append(painted["picture"].astype(np.float32) / np.float32(255))
        return found

    def compare(self, expected: Pictures, found: Pictures, data: Calibration, limits: Limits) -> Iterator[Measurement]:
        what, version, _ = reference(data)
        least = min(psnr(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
        note = f"{len(found)} pictures of {_STEPS} steps, the same prompts and seeds"
        ending = (limits["picture_psnr"], what, version, note)
        yield Measurement("gate, painting", "least PSNR with fp32's", least, *ending, better="higher")


def psnr(found: Array, expected: Array) -> float:
    """Peak signal-to-noise ratio of pictures in [0, 1], in decibels; 99 where they are equal."""
    error = float(np.mean(np.square(found - expected, dtype=np.float64)))
    return min(99.0, -10 * math.log10(error)) if error else 99.0
