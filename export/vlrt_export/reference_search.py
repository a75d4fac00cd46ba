"""A plain beam search in torch: the reference that exported captioners are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], tuple[Tensor, State]]
"""Words [R] and states [R, ...] to logits [R, V] and next states; R = images * beams, an image's beams neighbours."""


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Args:
        beams: hypotheses per image, also the number returned.
        max_new_tokens: longest caption, end word included.
        length_penalty: exponent of the length that divides the sum of log-probabilities; 0 with `classic`.
        start_id, end_id: ids.
        classic: the paper's rule: sums decide, and the search goes on until no live hypothesis can improve the
            list; every ended one that beats the best one dropped enters it. Otherwise transformers' rule with early
            stopping: it ends when `beams` have finished.
    """

    beams: int
    max_new_tokens: int
    length_penalty: float
    start_id: int
    end_id: int
    classic: bool = False

    def __post_init__(self) -> None:
        if self.classic and self.length_penalty:
            raise ValueError("the classic rule compares plain sums here")


@dataclass(frozen=True)
class Found:
    """A finished hypothesis: its words with the end word where it was reached, its score, its smallest margin.

    `margin` is the smallest difference in log-probability, over all steps of this image's search, between the last
    candidate kept and the first one dropped: below the graph's error another outcome is no mistake.
    """

    tokens: tuple[int, ...]
    score: float
    margin: float


def search(step: Step, initial: State, options: SearchOptions) -> list[list[Found]]:
    """The best captions of each image, best first.

    Args:
        step: the model.
        initial: states per image [B, ...].
        options: how to search.

    Returns:
        for each image up to `beams` hypotheses.

    Source: transformers 4.57.6 `generate(num_beams, length_penalty, early_stopping=True)`; with `classic`, Vinyals et
    al. (arXiv 1411.4555), section 3.1.2.
    """
    return _Search(step, initial, options).run()


class _Search:
    def __init__(self, step: Step, initial: State, options: SearchOptions) -> None:
        self.step, self.options = step, options
        self.images = initial[0].shape[0]
        k = options.beams
        self.state: State = tuple(x.repeat_interleave(k, 0) for x in initial)
        self.words = torch.full((self.images * k, 1), options.start_id)
        self.sums = torch.full((self.images, k), -torch.inf)
        self.sums[:, 0] = 0  # all beams start equal: only the first may propose
        self.finished: list[list[Found]] = [[] for _ in range(self.images)]
        self.done = [False] * self.images
        self.margins = [float("inf")] * self.images

    def run(self) -> list[list[Found]]:
        for length in range(1, self.options.max_new_tokens + 1):
            sums, parents, words = self._candidates()
            self._advance(sums, parents, words, length)
            if all(self.done):
                break
        return [self._best(image) for image in range(self.images)]

    def _best(self, image: int) -> list[Found]:
        """The list of an image; under the classic rule what never finished fills it up."""
        k, length = self.options.beams, self.options.max_new_tokens
        found = sorted(self.finished[image], key=lambda f: -f.score)[:k]
        if self.options.classic and not self.done[image]:
            rows = range(image * k, image * k + k)
            live = zip(rows, self.sums[image].tolist())
            found += [self._found(image, tuple(self.words[row, 1:].tolist()), total, length) for row, total in live]
        return found[:k]

    def _candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """The best two per beam: sums, parent beams and words, each [B, 2k]."""
        k = self.options.beams
        logits, self.state = self.step(self.words[:, -1], self.state)
        log_probabilities = logits.log_softmax(-1)
        vocabulary = logits.shape[1]
        scores = (self.sums.view(-1, 1) + log_probabilities).view(self.images, k * vocabulary)
        sums, index = scores.topk(2 * k + 1)
        for image in range(self.images):
            if not self.done[image]:
                gaps = sums[image, : k + 1] - sums[image, 1 : k + 2]
                smallest = float(gaps[gaps.isfinite()].min()) if gaps.isfinite().any() else float("inf")
                self.margins[image] = min(self.margins[image], smallest)
        return sums[:, : 2 * k], index[:, : 2 * k] // vocabulary, index[:, : 2 * k] % vocabulary

    def _advance(self, sums: Tensor, parents: Tensor, words: Tensor, length: int) -> None:
        k = self.options.beams
        rows, next_words = [], []
        for image in range(self.images):
            live: list[tuple[int, int, float]] = []
            for rank in range(2 * k):
                row, word, total = image * k + int(parents[image, rank]), int(words[image, rank]), sums[image, rank]
                if not self._ends(word, length):
                    live.append((row, word, float(total)))
                elif total.isfinite() and (len(live) <= k if self.options.classic else rank < k):
                    self._finish(image, row, word, float(total), length)
            live = (live + [(image * k, self.options.end_id, -torch.inf)] * k)[:k]
            rows += [row for row, _, _ in live]
            next_words += [word for _, word, _ in live]
            self.sums[image] = torch.tensor([total for _, _, total in live])
            self._stop(image)
        self.words = torch.cat([self.words[rows], torch.tensor(next_words)[:, None]], 1)
        self.state = tuple(x[rows] for x in self.state)

    def _ends(self, word: int, length: int) -> bool:
        cut = length == self.options.max_new_tokens and not self.options.classic
        return word == self.options.end_id or cut

    def _finish(self, image: int, row: int, word: int, total: float, length: int) -> None:
        if not self.done[image]:
            tokens = (*self.words[row, 1:].tolist(), word)
            self.finished[image].append(self._found(image, tokens, total, length))

    def _found(self, image: int, tokens: tuple[int, ...], total: float, length: int) -> Found:
        return Found(tokens, total / length**self.options.length_penalty, self.margins[image])

    def _stop(self, image: int) -> None:
        k, scores = self.options.beams, sorted(f.score for f in self.finished[image])
        if len(scores) < k:
            return
        # Sums only fall, so a live one below the worst of a full list stays below it.
        improvable = self.options.classic and float(self.sums[image].max()) > scores[-k]
        self.done[image] = not improvable
