"""Scores of given continuations against the search's own, on a decoder with recurrent state and memory."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, StepModel, generate, score_continuations
from vlrt.engines import Sessions
from vlrt.errors import UsageError


@pytest.fixture(scope="module")
def decoder(tiny_bundle_folder: Path) -> tuple[StepModel, dict[str, Any]]:
    """The tiny captioner's decoder, and what its image graphs give for one picture of noise."""
    bundle = Bundle.open(tiny_bundle_folder)
    spec, sessions = bundle.manifest.decode, Sessions(bundle)
    assert spec is not None
    pixels = np.random.default_rng(3).standard_normal((1, 3, 8, 8)).astype(np.float32)
    return StepModel(spec, sessions.get(spec.step)), sessions.run_chain(spec.chain, {"pixels": pixels})


def test_scores_of_what_was_generated(decoder: tuple[StepModel, dict[str, Any]]) -> None:
    step, initial = decoder
    found = generate(step, initial, DecodeOptions(num_beams=8, num_return_sequences=8, max_new_tokens=6))[0]
    scores = score_continuations(step, initial, step.spec.start_ids, [h.tokens for h in found])
    assert len({len(h.tokens) for h in found}) > 1, "of one length only, the shorter rows would not be tested"
    np.testing.assert_allclose(scores, [h.log_probability for h in found], atol=1e-4)


def test_probabilities_of_all_pairs_sum_to_one(decoder: tuple[StepModel, dict[str, Any]]) -> None:
    step, initial = decoder
    pairs = list(product(range(step.spec.vocabulary), repeat=2))  # more than share one pass
    scores = score_continuations(step, initial, [1, 5], pairs)
    assert np.exp(scores).sum() == pytest.approx(1.0, abs=1e-5)
    assert np.ptp(scores) > 1.0


def test_the_order_of_the_list_does_not_matter(decoder: tuple[StepModel, dict[str, Any]]) -> None:
    step, initial = decoder
    answers = [(5, 2), (6, 7, 8, 2), (4,), (9, 9, 2)]
    scores = score_continuations(step, initial, [1], answers)
    again = score_continuations(step, initial, [1], answers[::-1])
    np.testing.assert_allclose(scores, again[::-1], atol=1e-4)
    for answer, score in zip(answers, scores):
        assert score_continuations(step, initial, [1], [answer])[0] == pytest.approx(score, abs=1e-4)


def test_what_cannot_be_scored(decoder: tuple[StepModel, dict[str, Any]]) -> None:
    step, initial = decoder
    for prompt, answers in (([], [(5,)]), ([1], [(5,), ()])):
        with pytest.raises(UsageError, match="nothing to score"):
            score_continuations(step, initial, prompt, answers)
    with pytest.raises(UsageError, match="have 66 tokens, this decoder has room for 64"):
        score_continuations(step, initial, [1], [(5,), (5,) * 65])
