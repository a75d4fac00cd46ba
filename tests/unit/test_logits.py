"""Rules on one row of scores, each against what its paper or transformers says in plain words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vlrt import _C

NEVER = -np.inf


def processed(scores: list[float], tokens: list[int], prompt_length: int = 1, **options: Any) -> list[float]:
    native = _C.LogitsOptions()
    for name, value in options.items():
        setattr(native, name, value)
    row = np.array(scores, np.float32)
    _C.LogitsProcessors(native, len(scores)).apply(row, tokens, prompt_length)
    return [float(score) for score in row]


def kept(scores: list[float], **options: Any) -> set[int]:
    row = processed(scores, [0], warp=True, **options)
    return {i for i, score in enumerate(row) if score > NEVER}


def log(*probabilities: float) -> list[float]:
    return np.log(np.array(probabilities)).tolist()


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 512, 513, 2550, 50257])
def test_log_softmax(size: int) -> None:
    rng = np.random.default_rng(size)
    row = (rng.standard_normal(size) * 8 + 100).astype(np.float32)
    wide = row.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    _C.log_softmax(row)
    # An ulp at the magnitude of the inputs, 130, is 1.5e-5; the sum itself is good to 1e-6.
    assert np.abs(row - expected).max() < 2e-5


@pytest.mark.parametrize("spread", [1e-3, 1.0, 20.0, 300.0])
def test_log_softmax_is_good_for_any_spread(spread: float) -> None:
    row = np.linspace(-spread, 0, 1000).astype(np.float32)
    wide = row.astype(np.float64)
    _C.log_softmax(row)
    assert np.abs(row - (wide - np.log(np.exp(wide).sum()))).max() < 1e-6 * max(1, spread) * 10


def test_log_softmax_gives_masked_tokens_nothing() -> None:
    row = np.array([NEVER, 1.0, NEVER, 1.0], np.float32)
    _C.log_softmax(row)
    assert row.tolist() == [NEVER, pytest.approx(-np.log(2)), NEVER, pytest.approx(-np.log(2))]


def test_repetition_penalty_pushes_either_sign_down_once() -> None:
    assert processed([2.0, -2.0, 2.0], [0, 0, 1], repetition_penalty=2.0) == [1.0, -4.0, 2.0]


def test_no_repeat_ngram() -> None:
    assert processed([1, 1, 1, 1], [2, 3, 1, 2], no_repeat_ngram_size=2) == [1, 1, 1, NEVER]
    assert processed([1, 1, 1, 1], [2, 3, 1, 2], no_repeat_ngram_size=1) == [1, NEVER, NEVER, NEVER]
    assert processed([1, 1, 1, 1], [2, 3, 1, 2], no_repeat_ngram_size=3) == [1, 1, 1, 1]
    assert processed([1, 1, 1, 1], [2, 3, 1, 2, 3], no_repeat_ngram_size=3) == [1, NEVER, 1, 1]


def test_bad_words() -> None:
    words = [[3], [1, 2], [0, 1, 0]]
    assert processed([1, 1, 1, 1], [0, 1], bad_words_ids=words) == [1, 1, NEVER, NEVER]
    assert processed([1, 1, 1, 1], [2, 0, 1], bad_words_ids=words) == [NEVER, 1, NEVER, NEVER]


def test_a_bad_word_that_is_an_end_id_is_ignored() -> None:
    assert processed([1, 1], [0], bad_words_ids=[[1]], end_ids=[1]) == [1, 1]


def test_minimum_lengths_count_the_prompt_or_not() -> None:
    assert processed([1, 1], [0, 0, 0], 2, end_ids=[1], min_length=4) == [1, NEVER]
    assert processed([1, 1], [0, 0, 0], 2, end_ids=[1], min_length=3) == [1, 1]
    assert processed([1, 1], [0, 0, 0], 2, end_ids=[1], min_new_tokens=2) == [1, NEVER]
    assert processed([1, 1], [0, 0, 0], 2, end_ids=[1], min_new_tokens=1) == [1, 1]


def test_forced_ids() -> None:
    assert processed([1, 2, 3], [0], forced_bos_id=1) == [NEVER, 0, NEVER]
    assert processed([1, 2, 3], [0, 0], forced_bos_id=1) == [1, 2, 3]
    assert processed([1, 2, 3], [0, 0], 1, forced_eos_ids=[2], max_new_tokens=2) == [NEVER, NEVER, 0]
    assert processed([1, 2, 3], [0], 1, forced_eos_ids=[2], max_new_tokens=2) == [1, 2, 3]


def test_suppressed_ids() -> None:
    assert processed([1, 2, 3], [0], suppress_tokens=[2]) == [1, 2, NEVER]
    assert processed([1, 2, 3], [0], 1, begin_suppress_tokens=[0]) == [NEVER, 2, 3]
    assert processed([1, 2, 3], [0, 1], 1, begin_suppress_tokens=[0]) == [1, 2, 3]


def test_suppression_outlasts_forcing() -> None:
    assert processed([1, 2], [0], forced_bos_id=1, suppress_tokens=[1]) == [NEVER, NEVER]


def test_warpers_apply_to_sampling_only() -> None:
    assert processed([1, 2], [0], temperature=2.0, top_k=1) == [1, 2]
    assert processed([1, 2], [0], temperature=2.0, warp=True) == [0.5, 1]


def test_top_k_keeps_ties() -> None:
    assert kept([1, 3, 2, 2], top_k=2) == {1, 2, 3}
    assert kept([1, 3, 2, 2], top_k=1) == {1}
    assert kept([1, 3, 2, 2], top_k=1, min_tokens_to_keep=2) == {1, 2, 3}
    assert kept([1, 3], top_k=9) == {0, 1}


def test_top_p_keeps_the_smallest_set_above_p() -> None:
    row = log(0.1, 0.4, 0.2, 0.3)
    assert kept(row, top_p=0.35) == {1}
    assert kept(row, top_p=0.65) == {1, 3}
    assert kept(row, top_p=0.95) == {0, 1, 2, 3}
    assert kept(row, top_p=0.0) == {1}
    assert kept(row, top_p=0.0, min_tokens_to_keep=2) == {1, 3}


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert kept(log(0.1, 0.4, 0.2, 0.3), min_p=0.6) == {1, 3}
    assert kept(log(0.1, 0.4, 0.2, 0.3), min_p=0.6, min_tokens_to_keep=3) == {1, 2, 3}


def test_typical_p_keeps_what_surprises_as_much_as_expected() -> None:
    # Entropy 1.17; distances of 0.6, 0.2, 0.1, 0.1 from it: 0.66, 0.44, 1.13, 1.13.
    assert kept(log(0.6, 0.2, 0.1, 0.1), typical_p=0.15) == {1}
    assert kept(log(0.6, 0.2, 0.1, 0.1), typical_p=0.5) == {0, 1}


def test_renormalize() -> None:
    row = processed(log(0.5, 0.25, 0.25), [0], suppress_tokens=[0], renormalize=True)
    assert row == [NEVER, pytest.approx(np.log(0.5)), pytest.approx(np.log(0.5))]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"suppress_tokens": [9]}, [0]),
        ({"bad_words_ids": [[]]}, [0]),
        ({"forced_bos_id": 4}, [0]),
        ({}, [-1]),
        ({}, [4]),
    ],
)
def test_ids_outside_the_vocabulary_are_refused(options: dict[str, Any], tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token"):
        processed([1, 2, 3, 4], tokens, **options)


def test_a_row_of_the_wrong_size_is_refused() -> None:
    processors = _C.LogitsProcessors(_C.LogitsOptions(), 4)
    row: NDArray[np.float32] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="vocabulary"):
        processors.apply(row, [0], 1)
    with pytest.raises(TypeError):
        processors.apply(np.zeros(4), [0], 1)  # type: ignore[arg-type]
