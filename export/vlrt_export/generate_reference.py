"""The last rung for decoders: sequences and scores against `generate` of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, Hypothesis, StepModel
from vlrt.decode import generate as decode
from vlrt.engines import Array, Sessions
from vlrt.manifest import Measurement
from vlrt.text import TextCodec
from vlrt_export.image_checks import noise_picture

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    "beam 3": {"num_beams": 3, "num_return_sequences": 3},
    "beam 5": {"num_beams": 5, "num_return_sequences": 5},
}
"""What every family is compared with, by transformers' names."""

_PICTURES = ((200, 150), (97, 401))
_NEW_TOKENS = 12

AMBIGUOUS = 1e-4
"""Where candidates are closer than this, float error may choose either."""


@dataclass(frozen=True)
class Expected:
    """One sequence of the reference.

    Args:
        tokens: generated ids, the end id included.
        score: of beam search; not a number for greedy decoding.
        margin: least distance of the two best logits over the steps of greedy decoding; infinite for beams.
    """

    tokens: tuple[int, ...]
    score: float
    margin: float


def expected_sequences(
    generate: Callable[..., Any], prompt_length: int, end_ids: Sequence[int], options: dict[str, Any]
) -> list[list[Expected]]:
    """Runs transformers' `generate`.

    Args:
        generate: takes its options by keyword and returns its dictionary.
        prompt_length: ids that stand before the generated ones in its sequences.
        end_ids: ids that end a sequence.
        options: by transformers' names.

    Returns:
        Per image its sequences, best first.
    """
    with torch.no_grad():
        found = generate(return_dict_in_generate=True, output_scores=True, **options)
    returned, beams = options.get("num_return_sequences", 1), options.get("num_beams", 1)
    scores = found.sequences_scores.tolist() if beams > 1 else [math.nan] * len(found.sequences)
    sequences = [_trim(row[prompt_length:], end_ids) for row in found.sequences.tolist()]
    margins = [math.inf] * len(sequences)
    if beams == 1:
        gaps = torch.stack([(t := step.topk(2).values)[:, 0] - t[:, 1] for step in found.scores], 1)
        margins = [float(row[: len(tokens)].min()) for row, tokens in zip(gaps, sequences)]
    every = [Expected(*one) for one in zip(sequences, scores, margins)]
    return [every[i : i + returned] for i in range(0, len(every), returned)]


@dataclass(frozen=True)
class Agreement:
    """How far hypotheses agree with a reference.

    Args:
        different: images whose sequences differ.
        ambiguous: images whose sequences differ only where scores, or the two best logits, are within `AMBIGUOUS`.
        score_error: largest difference of scores of equal rank.
    """

    different: int
    ambiguous: int
    score_error: float


def compare(found: Sequence[Sequence[Hypothesis]], expected: Sequence[Sequence[Expected]]) -> Agreement:
    """Compares n-best lists image by image."""
    different = ambiguous = 0
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        gaps = [abs(h.score - e.score) for h, e in zip(ours, theirs) if not math.isnan(e.score)]
        if len(ours) == len(theirs) and all(tuple(h.tokens) == e.tokens for h, e in zip(ours, theirs)):
            worst = max([worst, *gaps])
        elif len(ours) == len(theirs) and all(_is_tie(h, e, theirs) for h, e in zip(ours, theirs)):
            ambiguous += 1
            worst = max([worst, *gaps])
        else:
            different += 1
    return Agreement(different, ambiguous, worst)


def measurements(
    what: str, setting: str, agreement: Agreement, images: int, reference: str, tolerance: float
) -> Iterator[Measurement]:
    """The certificate's lines of one setting."""
    import transformers

    note = f"{images} pictures; {agreement.ambiguous} hung on a margin below {AMBIGUOUS:g}"
    ending = (f"transformers {reference}", transformers.__version__, note)
    yield Measurement(f"{what}, {setting}", "pictures that differ", float(agreement.different), 0.0, *ending)
    if setting != "greedy":
        yield Measurement(f"{what}, {setting}", "max score error", agreement.score_error, tolerance, *ending)


def measure_sequences(
    folder: Path, generate: Callable[..., Any], what: str, reference: str, tolerance: float, question: str = ""
) -> Iterator[Measurement]:
    """Decodes two pictures with the staged bundle and with transformers, in every setting of `SETTINGS`.

    Args:
        folder: the staged bundle.
        generate: called with the chain's inputs by name as tensors, and transformers' options by keyword.
        what: ``captions`` or ``answers``.
        reference: name of transformers' class.
        tolerance: of scores.
        question: asked of both pictures, where the chain takes one.
    """
    bundle = Bundle.open(folder)
    spec, image, text = bundle.manifest.decode, bundle.manifest.image, bundle.manifest.text
    if spec is None or image is None or text is None:
        raise ValueError("the staged bundle does not decode")
    sessions = Sessions(bundle)
    arrays: dict[str, Array] = {image.input: pictures.preprocess([noise_picture(*s) for s in _PICTURES], image)}
    if question:
        arrays[text.input] = TextCodec.open(bundle).encode([question] * len(_PICTURES))
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    initial = sessions.run_chain(spec.chain, arrays)
    step = StepModel.open(spec, sessions.get)
    for name, setting in SETTINGS.items():
        options = {**setting, "max_new_tokens": _NEW_TOKENS}
        found = decode(step, initial, DecodeOptions(**options))
        ours = {"do_sample": False, **options}
        expected = expected_sequences(partial(generate, given), len(spec.start_ids), spec.end_ids, ours)
        yield from measurements(what, name, compare(found, expected), len(_PICTURES), reference, tolerance)


def _is_tie(ours: Hypothesis, theirs: Expected, every: Sequence[Expected]) -> bool:
    if tuple(ours.tokens) == theirs.tokens:
        return True
    if math.isnan(theirs.score):
        return theirs.margin < AMBIGUOUS
    close = abs(ours.score - theirs.score) < AMBIGUOUS
    others = [abs(theirs.score - e.score) for e in every if e.tokens != theirs.tokens]
    # The last of a list may tie with one that is not on it.
    return close and (theirs is every[-1] or min(others, default=math.inf) < AMBIGUOUS)


def _trim(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    stops = [i for i, token in enumerate(tokens) if token in ends]
    return tuple(tokens[: stops[0] + 1] if stops else tokens)
