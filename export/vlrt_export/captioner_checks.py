"""A captioner's own rungs of the parity ladder: pixels, and captions against a plain search over torch's modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines import Sessions
from vlrt.manifest import Measurement
from vlrt_export.captioner import Captioner
from vlrt_export.captioner_graphs import STEP
from vlrt_export.graph import Check
from vlrt_export.modules.show_and_tell import ShowAndTell
from vlrt_export.reference_search import Found, SearchOptions, State, Step, search

_SIZES = ((64, 48), (333, 207), (50, 401), (260, 260), (1, 1), (612, 612))
"""Width and height of the synthetic pictures."""

_AMBIGUOUS = 1e-4
"""Where two candidates' log-probabilities are closer than this, float error may choose either."""


@dataclass(frozen=True)
class _Setting:
    name: str
    beams: int
    rule: str
    length_penalty: float


_SETTINGS = (
    _Setting("greedy", 1, "hf", 0.7),
    _Setting("3 beams", 3, "hf", 0.7),
    _Setting("20 beams, classic", 20, "classic", 0.0),
)


def synthetic_pictures(seed: int = 0) -> list[Image.Image]:
    """Pictures of several odd sizes: smooth random colours with noise, the same for the same seed."""
    rng = np.random.default_rng(seed)
    found = []
    for width, height in _SIZES:
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
        noise = rng.integers(-20, 21, (height, width, 3))
        found.append(Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)))
    return found


def captioner_checks(captioner: Captioner, tolerance: float) -> list[Check]:
    """The rungs: pixels, and decoding where the decoder draws no random numbers.

    Args:
        tolerance: largest difference of two scores of the same caption.
    """

    def pixels(folder: Path) -> Iterator[Measurement]:
        spec = Bundle.open(folder).manifest.image
        if spec is None:
            raise ValueError("a captioner's bundle has an image section")
        worst = 0.0
        for picture in synthetic_pictures():
            found = pictures.preprocess([picture], spec)[0]
            worst = max(worst, float(np.abs(found - reference_pixels(picture, captioner)).max()))
        yield Measurement("pixels", "max abs error", worst, 1e-5, "Pillow and the checkpoint's formula", _version())

    def captions(folder: Path) -> Iterator[Measurement]:
        bundle = Bundle.open(folder)
        sessions = Sessions(bundle)
        batch = np.stack([reference_pixels(picture, captioner) for picture in synthetic_pictures()])
        with torch.no_grad():
            regions = captioner.encoder(torch.from_numpy(batch))
        for setting in _SETTINGS:
            yield from _compare(captioner, bundle, sessions, regions, setting, tolerance)

    drawn = getattr(captioner.decoder, "mode", "") == "hard-sampled"
    return [pixels] if drawn else [pixels, captions]


def reference_pixels(picture: Image.Image, captioner: Captioner) -> Any:
    """Pixels [3, H, W] by the formula, in double precision and apart from the runtime's code."""
    spec = captioner.image
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[spec.interpolation]
    values = np.asarray(picture.convert("RGB").resize(spec.size[::-1], method), np.float64) * spec.scale
    return np.moveaxis((values - spec.mean) / spec.std, 2, 0).astype(np.float32)


def reference_captions(captioner: Captioner, regions: Tensor, options: SearchOptions) -> list[list[Found]]:
    """Captions by the plain search over torch's own modules, from regions [B, S, C]."""
    decoder: Any = captioner.decoder
    with torch.no_grad():
        memory = decoder.memory(regions)
        return search(_step(decoder, memory), memory[-2:], options)


def _step(decoder: Any, memory: State) -> Step:
    def plain(token: Tensor, state: State) -> tuple[Tensor, State]:
        logits, hidden, cell = decoder.step(token, *state)
        return logits, (hidden, cell)

    def attentive(token: Tensor, state: State) -> tuple[Tensor, State]:
        logits, hidden, cell, _ = decoder.step(token, *state, memory[:2])
        return logits, (hidden, cell)

    return plain if isinstance(decoder, ShowAndTell) else attentive


def _compare(
    captioner: Captioner, bundle: Bundle, sessions: Sessions, regions: Tensor, setting: _Setting, tolerance: float
) -> Iterator[Measurement]:
    decode = bundle.manifest.decode
    if decode is None:
        raise ValueError("a captioner's bundle has a decode section")
    expected = reference_captions(captioner, regions, _search_options(captioner, setting))
    changes = {"num_beams": setting.beams, "num_return_sequences": setting.beams, "rule": setting.rule}
    changes |= {"length_penalty": setting.length_penalty, "early_stopping": True}
    options = DecodeOptions.from_manifest({"max_new_tokens": captioner.max_new_tokens}, **changes)
    initial = sessions.run_chain(decode.chain[1:], {"regions": regions.numpy()})
    found = generate(StepModel(decode, sessions.get(STEP)), {"regions": regions.numpy()} | initial, options)
    different = ambiguous = 0
    worst = 0.0
    for ours, theirs in zip(found, expected):
        if [tuple(map(int, h.tokens)) for h in ours] == [f.tokens for f in theirs]:
            worst = max([worst, *(abs(h.score - f.score) for h, f in zip(ours, theirs))])
        elif min(f.margin for f in theirs) < _AMBIGUOUS:
            ambiguous += 1
        else:
            different += 1
    note = f"{len(found)} pictures, {setting.beams} captions each; {ambiguous} hung on a margin below {_AMBIGUOUS:g}"
    reference = ("plain search over torch modules", torch.__version__, note)
    yield Measurement(f"captions, {setting.name}", "pictures whose captions differ", float(different), 0.0, *reference)
    yield Measurement(f"captions, {setting.name}", "max score error", worst, tolerance, *reference)


def _search_options(captioner: Captioner, setting: _Setting) -> SearchOptions:
    words = captioner.words
    return SearchOptions(
        beams=setting.beams,
        max_new_tokens=captioner.max_new_tokens,
        length_penalty=setting.length_penalty,
        start_id=words.start_id,
        end_id=words.end_id,
        classic=setting.rule == "classic",
    )


def _version() -> str:
    import PIL

    return PIL.__version__
