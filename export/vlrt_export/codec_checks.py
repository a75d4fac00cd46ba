"""What a codec's bundle is held to beyond its graphs: codes and pictures against double precision and a reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlrt.bundle import Bundle
from vlrt.codec import PictureCodec
from vlrt.manifest import Measurement
from vlrt.verify import synthetic_picture
from vlrt_export.graph import Check
from vlrt_export.image_checks import noise_picture
from vlrt_export.image_codec import DETOKENIZER, TOKENIZER, ImageCodec
from vlrt_export.modules.image_codec import ImageTokenizer
from vlrt_export.parity import difference

Reference = Callable[[Tensor], tuple[Tensor, Tensor]]
Tolerance = Callable[[str, float], float]
_SIZE = (96, 144)
"""Height and width of the pictures, before they are rounded down to whole codes."""

_ROUNDING = 1e-4
"""Of a score in single precision, relative to the scores' spread at its place: codes nearer than that are a tie."""


def codec_checks(codec: ImageCodec, tolerance: Tolerance) -> Sequence[Check]:
    """The rungs: codes, then pixels of the same codes; the latter against the family's reference where it has one."""
    tokenizer = codec.tokenizer
    if tokenizer is None:
        return ()

    def codes(folder: Path) -> Iterator[Measurement]:
        yield measure_codes(Bundle.open(folder), tokenizer)

    def reconstruction(folder: Path) -> Iterator[Measurement]:
        if codec.reference is not None:
            yield _measure_reference(Bundle.open(folder), codec.reference, tolerance("pixels", 1e-4))

    return (codes, reconstruction) if codec.reference else (codes,)


def pictures(codec: PictureCodec) -> list[Image.Image]:
    """One made of formulas and one of coarse noise, cut to whole codes."""
    factor = codec.spec.factor
    height, width = (max(1, side // factor) * factor for side in _SIZE)
    return [codec.fit(picture, (height, width)) for picture in (synthetic_picture(), noise_picture(333, 227))]


def measure_codes(bundle: Bundle, tokenizer: ImageTokenizer) -> Measurement:
    """Codes of a bundle that its tokenizer in double precision would give otherwise, ties apart."""
    wrong = ties = total = 0
    double = copy.deepcopy(tokenizer).double()
    runtime = PictureCodec(bundle)
    for picture in pictures(runtime):
        pixels = runtime.pixels([picture])
        found = torch.from_numpy(runtime.sessions.run_chain((TOKENIZER,), {"pixels": pixels})["tokens"])
        with torch.no_grad():
            scores = double.scores(torch.from_numpy(pixels).double())
        behind, spread = _behind(scores, found, lowest=tokenizer.codebook is not None)
        tied = (behind > 0) & (behind <= _ROUNDING * spread)
        wrong += int((behind > _ROUNDING * spread).sum())
        ties += int(tied.sum())
        total += found.numel()
    note = f"{ties} ties" if ties else ""
    metric = f"codes of {total} that differ"
    return Measurement("codes", metric, wrong, 0, "torch module in double precision", torch.__version__, note)


def _behind(scores: Tensor, codes: Tensor, lowest: bool) -> tuple[Tensor, Tensor]:
    """How far each chosen code's score is behind the best one's, and the spread of the scores at its place."""
    signed = -scores if lowest else scores
    chosen = signed.gather(1, codes[:, None])[:, 0]
    return signed.amax(1) - chosen, signed.std(1)


def _measure_reference(bundle: Bundle, reference: Reference, limit: float) -> Measurement:
    runtime = PictureCodec(bundle)
    worst, differing = 0.0, 0
    for picture in pictures(runtime):
        pixels = runtime.pixels([picture])
        with torch.no_grad():
            codes, painted = reference(torch.from_numpy(pixels))
        found = runtime.sessions.run_chain((TOKENIZER,), {"pixels": pixels})["tokens"]
        differing += int((found != codes.numpy()).sum())
        again = runtime.sessions.run_chain((DETOKENIZER,), {"tokens": codes.numpy()})["pixels"]
        worst = max(worst, difference(again, np.asarray(painted)))
    note = f"{differing} codes differ, at ties" if differing else "the same codes"
    return Measurement("reconstruction", "max abs error", worst, limit, "plain torch", torch.__version__, note)
