"""The search against a plain NumPy twin and against brute force, on models that are tables of probabilities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vlrt.decode import DecodeOptions, Hypothesis, Loop, LoopShape, RowTensor, StepBuffers, Task, decode

START, END = 0, 1
Scores = Callable[[tuple[int, ...]], NDArray[np.float32]]


class Table:
    """log p(next | two tokens before, one token before), one table per image; the tokens before are its state."""

    def __init__(self, seed: int, vocabulary: int, images: int = 1, spread: float = 2.0) -> None:
        rng = np.random.default_rng(seed)
        shape = (images, vocabulary, vocabulary, vocabulary)
        logits = (rng.standard_normal(shape) * spread).astype(np.float32)
        self.log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        self.vocabulary, self.images = vocabulary, images
        self.sizes: list[tuple[int, int]] = []

    def step(self, b: StepBuffers) -> None:
        self.sizes.append((b.rows, b.images))
        image = np.repeat(b.memory["image"][:, 0], b.rows // b.images)
        before, last = b.states["before"][:, 0], b.tokens[:, 0]
        b.logits[:] = self.log_p[image, before, last]
        b.next_states["before"][:, 0] = last

    def scores(self, image: int) -> Scores:
        return lambda tokens: self.log_p[image, tokens[-2] if len(tokens) > 1 else START, tokens[-1]]

    def run(self, options: DecodeOptions, **kwargs: Any) -> list[list[Hypothesis]]:
        count = self.images
        state, memory = RowTensor("before", (1,), "int64"), RowTensor("image", (1,), "int64")
        rows = count * options.rows_per_image
        shape = LoopShape(self.vocabulary, count, rows, options.max_new_tokens, recurrent=(state,), memory=(memory,))
        initial = {"before": np.full((count, 1), START), "image": np.arange(count)[:, None]}
        return decode(Loop(shape), self.step, Task([[START]] * count, (END,), initial), options, **kwargs)


@dataclass
class Twin:
    """Both rules as one reads them, on whole token tuples; nothing is shared with the C++ search."""

    scores: Scores
    options: DecodeOptions
    live: list[tuple[np.float32, tuple[int, ...]]] = field(default_factory=list)
    done: list[tuple[float, tuple[int, ...], bool]] = field(default_factory=list)

    def normalized(self, score: np.float32, length: int) -> float:
        return float(score / np.float32(length**self.options.length_penalty))

    def best_continuations(self) -> list[tuple[np.float32, tuple[int, ...]]]:
        """The 2k best; sorted() is stable, so ties go to the lowest beam, then to the lowest token."""
        every = [(score + p, (*tokens, i)) for score, tokens in self.live for i, p in enumerate(self.scores(tokens))]
        possible = [c for c in every if c[0] > -math.inf]
        return sorted(possible, key=lambda c: -c[0])[: 2 * self.options.num_beams]

    def keep_done(self, score: np.float32, tokens: tuple[int, ...], capacity: int) -> None:
        self.done.append((self.normalized(score, len(tokens) - 1), tokens, tokens[-1] == END))
        self.done = sorted(self.done, key=lambda d: -d[0])[:capacity]

    def run(self) -> list[tuple[float, tuple[int, ...], bool]]:
        self.live = [(np.float32(0), (START,))]
        for length in range(1, self.options.max_new_tokens + 1):
            stop = self.hf(length) if self.options.rule == "hf" else self.classic(length)
            if stop:
                break
        if self.options.rule == "classic":
            rest = [(self.normalized(s, len(t) - 1), t, False) for s, t in self.live]
            self.done += sorted(rest, key=lambda d: -d[0])
        return [(s, t[1:], ended) for s, t, ended in self.done[: self.options.num_return_sequences]]

    def hf(self, length: int) -> bool:
        o, k = self.options, self.options.num_beams
        last = length == o.max_new_tokens
        found = self.best_continuations()
        for score, tokens in found[:k]:
            if last or tokens[-1] == END:
                self.keep_done(score, tokens, k)
        self.live = [] if last else [c for c in found if c[1][-1] != END][:k]
        full = len(self.done) == k
        if not self.live or (full and o.early_stopping is True):
            return True
        reach = o.max_new_tokens if o.early_stopping == "never" and o.length_penalty > 0 else length
        return full and self.normalized(self.live[0][0], reach) <= self.done[-1][0]

    def classic(self, length: int) -> bool:
        o, capacity = self.options, self.options.num_return_sequences
        live: list[tuple[np.float32, tuple[int, ...]]] = []
        for score, tokens in self.best_continuations():
            if tokens[-1] == END:
                self.keep_done(score, tokens, capacity)
            elif len(live) < o.num_beams:
                live.append((score, tokens))
            else:
                break
        self.live = live
        if len(self.done) < capacity:
            return False
        reach = o.max_new_tokens if o.length_penalty > 0 else length + 1
        return self.normalized(live[0][0], reach) <= self.done[-1][0]


def assert_twin(table: Table, options: DecodeOptions) -> None:
    for image, found in enumerate(table.run(options)):
        expected = Twin(table.scores(image), options).run()
        assert [h.tokens for h in found] == [tokens for _, tokens, _ in expected]
        assert [h.finished for h in found] == [ended for _, _, ended in expected]
        # Sums of a few float32 values; the loop normalises the table's rows once more.
        assert [h.score for h in found] == pytest.approx([score for score, _, _ in expected], abs=1e-5)


@pytest.mark.parametrize("rule", ["hf", "classic"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, -0.5])
@pytest.mark.parametrize(("num_beams", "n_best", "images"), [(2, 1, 1), (3, 3, 4), (6, 2, 2), (20, 5, 1)])
def test_twin(rule: str, length_penalty: float, num_beams: int, n_best: int, images: int) -> None:
    for seed in range(12):
        for early in (False, True, "never") if rule == "hf" else (False,):
            options = DecodeOptions(
                rule=rule,  # type: ignore[arg-type]
                num_beams=num_beams,
                num_return_sequences=n_best,
                max_new_tokens=8,
                length_penalty=length_penalty,
                early_stopping=early,  # type: ignore[arg-type]
            )
            assert_twin(Table(seed, 45, images), options)


def brute_force(scores: Scores, vocabulary: int, options: DecodeOptions) -> list[tuple[float, tuple[int, ...]]]:
    """Scores of every sequence that ends, or is as long as allowed; best first."""
    every = []
    words = [i for i in range(vocabulary) if i != END]
    for length in range(1, options.max_new_tokens + 1):
        last = range(vocabulary) if length == options.max_new_tokens and options.rule == "hf" else (END,)
        for body in itertools.product(words, repeat=length - 1):
            for token in last:
                tokens = (*body, token)
                score = math.fsum(scores((START, *tokens[:i]))[t] for i, t in enumerate(tokens))
                every.append((score / length**options.length_penalty, tokens))
    return sorted(every, reverse=True)


@pytest.mark.parametrize("rule", ["hf", "classic"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best(rule: str, length_penalty: float) -> None:
    """27 prefixes of three words live at most, so 30 beams drop nothing."""
    for seed in range(8):
        table = Table(seed, 4)
        options = DecodeOptions(
            rule=rule,  # type: ignore[arg-type]
            num_beams=30,
            num_return_sequences=6,
            max_new_tokens=4,
            length_penalty=length_penalty,
            early_stopping="never" if rule == "hf" else False,
        )
        expected = brute_force(table.scores(0), 4, options)[:6]
        found = [(h.score, h.tokens) for h in table.run(options)[0]]
        assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
        assert [s for s, _ in found] == pytest.approx([s for s, _ in expected], abs=1e-5)


def test_a_narrow_beam_can_miss_the_best() -> None:
    """Otherwise the test above would say nothing about the search."""
    missed = 0
    for seed in range(8):
        table = Table(seed, 4)
        best = brute_force(table.scores(0), 4, DecodeOptions(max_new_tokens=4, length_penalty=0.0))[0][1]
        missed += table.run(DecodeOptions(max_new_tokens=4, length_penalty=0.0))[0][0].tokens != best
    assert missed > 0


def test_ties_go_to_the_lowest_index() -> None:
    """All tokens are equally likely: beams take the lowest tokens of the lowest beams, in this order."""
    table = Table(0, 70)
    table.log_p[:] = np.float32(-math.log(70))
    table.log_p[..., END] = -20
    options = DecodeOptions(num_beams=3, num_return_sequences=3, max_new_tokens=3)
    assert [h.tokens for h in table.run(options)[0]] == [(0, 0, 0), (0, 0, 2), (0, 0, 3)]
    assert table.run(DecodeOptions(max_new_tokens=3))[0][0].tokens == (0, 0, 0)


def test_classic_drops_beams_that_cannot_win() -> None:
    """Once two sentences are finished, live ones below the second leave: the rows of a call become fewer."""
    shrank = False
    for seed in range(12):
        table = Table(seed, 45)
        table.run(DecodeOptions(rule="classic", num_beams=10, max_new_tokens=12, length_penalty=0.0))
        rows = [rows for rows, _ in table.sizes]
        shrank |= any(after < before for before, after in itertools.pairwise(rows))
    assert shrank


def test_fewer_continuations_than_beams() -> None:
    """Two words may follow: ten beams start as two, and nothing is said twice."""
    table = Table(3, 12)
    options = DecodeOptions(
        num_beams=10, num_return_sequences=10, max_new_tokens=3, suppress_tokens=(*tuple(range(4, 12)), 0)
    )
    found = [h.tokens for h in table.run(options)[0]]
    assert len(set(found)) == len(found)
    assert {token for tokens in found for token in tokens} <= {1, 2, 3}
    assert [rows for rows, _ in table.sizes] == [1, 2, 4]


def test_classic_waits_for_a_sentence_that_length_will_favour() -> None:
    """`1` alone scores log 0.83 = -0.186; `2 3 … 10 1` begins with log 0.17, then is certain: -1.772 / 10."""
    table = Table(0, 11)
    table.log_p[:] = -30
    table.log_p[..., START, [END, 2]] = np.log([0.83, 0.17])
    for word in range(2, 11):
        table.log_p[..., word, word + 1 if word < 10 else END] = 0
    options = DecodeOptions(rule="classic", num_beams=2, max_new_tokens=10, length_penalty=1.0)
    assert table.run(options)[0][0].tokens == (*range(2, 11), END)


@pytest.mark.parametrize("offset", [-200.0, 200.0])
@pytest.mark.parametrize("rule", [{}, {"repetition_penalty": 1.3}, {"suppress_tokens": (4, 5)}, {"do_sample": True}])
def test_logits_mean_the_same_wherever_they_lie(rule: dict[str, Any], offset: float) -> None:
    for seed in range(3):
        options = DecodeOptions(num_beams=3, num_return_sequences=3, max_new_tokens=6, **rule)
        plain, shifted = Table(seed, 200), Table(seed, 200)
        shifted.log_p += np.float32(offset)
        expected, found = plain.run(options)[0], shifted.run(options)[0]
        assert [h.tokens for h in found] == [h.tokens for h in expected]
        # Logits of 200 are exact to 1.5e-5 each.
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)
