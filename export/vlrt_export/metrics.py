"""Caption metrics over a corpus: BLEU and CIDEr-D, from their papers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Words = Sequence[str]
Ngrams = Counter[tuple[str, ...]]

LONGEST = 4
"""Longest n-gram of both metrics."""

_LENGTH_DEVIATION = 6.0
_WORD = re.compile(r"\w+(?:'\w+)*")


@dataclass(frozen=True)
class CaptionScores:
    """BLEU-1 to BLEU-4 on 0 to 100, CIDEr-D on the usual scale of 0 to 10."""

    bleu: tuple[float, float, float, float]
    cider: float


def caption_words(caption: str) -> list[str]:
    """A caption's words for scoring: lower case, no punctuation (a hyphen parts two words, an apostrophe none)."""
    return _WORD.findall(caption.lower())


def score_captions(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Scores one caption per image against several references.

    Args:
        captions: image -> generated caption.
        references: image -> its reference captions; document frequencies are counted over these images.

    Raises:
        ValueError: no captions, or an image without references.
    """
    if not captions:
        raise ValueError("no captions to score")
    missing = [image for image in captions if not references.get(image)]
    if missing:
        raise ValueError(f"`{missing[0]}` has no reference captions")
    hypotheses = [caption_words(text) for text in captions.values()]
    targets = [[caption_words(text) for text in references[image]] for image in captions]
    first, second, third, fourth = bleu(hypotheses, targets)
    return CaptionScores((100 * first, 100 * second, 100 * third, 100 * fourth), cider_d(hypotheses, targets))


def ngrams(words: Words, n: int) -> Ngrams:
    """How often each run of `n` words occurs."""
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 on 0 to 1, unsmoothed, with the closest reference length (the shorter of two).

    Source: Papineni et al., BLEU (ACL 2002), sections 2.1 to 2.3.
    """
    matched, total = [0] * LONGEST, [0] * LONGEST
    length = closest = 0
    for words, targets in zip(hypotheses, references, strict=True):
        length += len(words)
        closest += min((abs(len(target) - len(words)), len(target)) for target in targets)[1]
        for n in range(1, LONGEST + 1):
            found = ngrams(words, n)
            allowed: Ngrams = Counter()
            for target in targets:
                allowed |= ngrams(target, n)
            matched[n - 1] += (found & allowed).total()
            total[n - 1] += found.total()
    brevity = 0.0 if length == 0 else min(1.0, math.exp(1 - closest / length))
    return [brevity * _geometric_mean(matched[:n], total[:n]) for n in range(1, LONGEST + 1)]


def _geometric_mean(matched: Sequence[int], total: Sequence[int]) -> float:
    if not all(matched):
        return 0.0
    return math.exp(sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / len(matched))


def cider_d(hypotheses: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean CIDEr-D over images, times ten; document frequencies come from `references`.

    Source: Vedantam et al., CIDEr (arXiv 1411.5726), equations 1 to 4, with counts for term frequencies and the
    natural logarithm as in the authors' evaluation server; sigma 6.
    """
    frequency = _document_frequency(references)
    documents = math.log(len(references))
    scores = [_image_cider(h, r, frequency, documents) for h, r in zip(hypotheses, references, strict=True)]
    return sum(scores) / len(scores)


def _document_frequency(references: Sequence[Sequence[Words]]) -> Ngrams:
    frequency: Ngrams = Counter()
    for targets in references:
        frequency.update({gram for words in targets for n in range(1, LONGEST + 1) for gram in ngrams(words, n)})
    return frequency


def _image_cider(words: Words, targets: Sequence[Words], frequency: Ngrams, documents: float) -> float:
    score = 0.0
    for n in range(1, LONGEST + 1):
        vector = _tf_idf(ngrams(words, n), frequency, documents)
        for target in targets:
            penalty = math.exp(-((len(words) - len(target)) ** 2) / (2 * _LENGTH_DEVIATION**2))
            score += penalty * _clipped_cosine(vector, _tf_idf(ngrams(target, n), frequency, documents))
    return 10 * score / (LONGEST * len(targets))


def _tf_idf(counts: Ngrams, frequency: Ngrams, documents: float) -> dict[tuple[str, ...], float]:
    return {gram: count * (documents - math.log(max(1, frequency[gram]))) for gram, count in counts.items()}


def _clipped_cosine(vector: Mapping[tuple[str, ...], float], target: Mapping[tuple[str, ...], float]) -> float:
    norms = math.sqrt(sum(v * v for v in vector.values()) * sum(v * v for v in target.values()))
    if norms == 0:
        return 0.0
    return sum(min(value, target[gram]) * target[gram] for gram, value in vector.items() if gram in target) / norms
