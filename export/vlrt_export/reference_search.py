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
        length_penalty: exponent of the length that divides the sum of log-probabilities.
        start_id, end_id: ids.
        classic: the paper's rule: sums decide, and the search goes on until no live hypothesis can improve the
            list. Otherwise transformers' rule with early stopping: it ends when `beams` have finished.
    """

    beams: int
    max_new_tokens: int
    length_penalty: float
    start_id: int
    end_id: int
    classic: bool = False


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
        return [sorted(found, key=lambda f: -f.score)[: self.options.beams] for found in self.finished]

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
        rows, next_words, next_sums = [], [], torch.zeros_like(self.sums)
        for image in range(self.images):
            offset = image * k
            live: list[tuple[int, int, int]] = []
            for rank in range(2 * k):
                word, parent = int(words[image, rank]), offset + int(parents[image, rank])
                last = length == self.options.max_new_tokens
                if word == self.options.end_id or last:
                    if rank < k and sums[image, rank].isfinite():
                        self._finish(image, parent, word, float(sums[image, rank]), length)
                elif len(live) < k:
                    live.append((parent, word, rank))
            live += [(offset, self.options.end_id, 2 * k - 1)] * (k - len(live))
            rows += [parent for parent, _, _ in live]
            next_words += [word for _, word, _ in live]
            next_sums[image] = sums[image, [rank for _, _, rank in live]]
            self._stop(image, float(next_sums[image].max()))
        self.words = torch.cat([self.words[rows], torch.tensor(next_words)[:, None]], 1)
        self.state = tuple(x[rows] for x in self.state)
        self.sums = next_sums

    def _finish(self, image: int, row: int, word: int, total: float, length: int) -> None:
        if not self.done[image]:
            tokens = (*self.words[row, 1:].tolist(), word)
            score = total / length**self.options.length_penalty
            self.finished[image].append(Found(tokens, score, self.margins[image]))

    def _stop(self, image: int, best_live: float) -> None:
        found = self.finished[image]
        if len(found) < self.options.beams:
            return
        if not self.options.classic:
            self.done[image] = True
        elif self.options.length_penalty == 0:
            worst = sorted((f.score for f in found), reverse=True)[self.options.beams - 1]
            self.done[image] = self.done[image] or best_live <= worst
