"""Matching: how well sentences describe a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.engines import EngineOptions
from vlrt.errors import UsageError
from vlrt.image import ImageLike


@dataclass(frozen=True)
class Match:
    """One sentence against one photograph.

    Args:
        text: the sentence.
        score: cosine of the two embeddings, −1 to 1; comparable between sentences and photographs of one model.
        probability: softmax of scale · cosine over the sentences given together; 1 for a single one.
    """

    text: str
    score: float
    probability: float


class Matcher:
    """Scores sentences against photographs with the dual encoder of a bundle."""

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require("match")
        self.encoder = DualEncoder(bundle, options)
        self.encoder.sessions.prepare((*self.encoder.spec.image, *self.encoder.spec.text))

    def __call__(self, photograph: ImageLike, texts: str | Sequence[str]) -> list[Match]:
        """Matches of each sentence, in the order given.

        Raises:
            ImageError: not a readable image.
            UsageError: no sentence, or an empty one.
        """
        sentences = [texts] if isinstance(texts, str) else list(texts)
        if not sentences:
            raise UsageError("there is no text to match", 'vlrt run match photo.jpg "a dog in the snow"')
        image = self.encoder.images([photograph])[0]
        cosines = self.encoder.texts(sentences) @ image
        logits = self.encoder.spec.scale * cosines.astype(np.float64)
        odds = np.exp(logits - logits.max())
        shares = odds / odds.sum()
        return [Match(text, float(cosine), float(share)) for text, cosine, share in zip(sentences, cosines, shares)]
