"""Matching: how well sentences describe a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.engines import Array, EngineOptions
from vlrt.errors import UsageError
from vlrt.image import ImageLike


@dataclass(frozen=True)
class Match:
    """One sentence against one photograph.

    Args:
        text: the sentence.
        score: cosine of the two embeddings, −1 to 1; comparable between sentences and photographs of one model.
        probability: softmax of scale · cosine over the sentences given together; 1 for a single one. Where `judged`,
            what the matching head says of this sentence by itself.
        judged: whether the model has a matching head, which reads photograph and sentence together.
    """

    text: str
    score: float
    probability: float
    judged: bool = False


class Matcher:
    """Scores sentences against photographs with a bundle's dual encoder, and its matching head where it has one."""

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require("match")
        self.encoder = DualEncoder(bundle, options)
        self.spec = bundle.manifest.match
        head = (*self.spec.image, self.spec.graph) if self.spec else ()
        self.encoder.sessions.prepare((*self.encoder.spec.image, *self.encoder.spec.text, *head))

    def __call__(self, photograph: ImageLike, texts: str | Sequence[str]) -> list[Match]:
        """Matches of each sentence, in the order given.

        Raises:
            ImageError: not a readable image.
            UsageError: no sentence, or an empty one.
        """
        sentences = [texts] if isinstance(texts, str) else list(texts)
        if not sentences:
            raise UsageError("there is no text to match", 'vlrt run match photo.jpg "a dog in the snow"')
        encoder, ids = self.encoder, self.encoder.codec.encode(sentences)
        pixels = pictures.preprocess([pictures.load(photograph)], encoder.image_spec)
        # The image encoder runs once, though the matching head and the embedding both read it.
        roles = dict.fromkeys((*(self.spec.image if self.spec else ()), *encoder.spec.image))
        image = encoder.sessions.run_chain(roles, encoder.image_inputs(pixels))
        vectors = image[encoder.spec.image_output][0].reshape(-1, encoder.spec.dimension)
        cosines = (encoder.token_ids(ids) @ vectors.T).max(-1)
        shares = self._judge(image, ids) if self.spec else _softmax(encoder.spec.scale * cosines.astype(np.float64))
        judged = self.spec is not None
        return [Match(*one, judged) for one in zip(sentences, cosines.tolist(), shares.tolist())]

    def _judge(self, image: dict[str, Array], ids: NDArray[np.int64]) -> Array:
        if self.spec is None:
            raise UsageError(f"the bundle `{self.encoder.bundle.name}` has no matching head")
        arrays = {**image, self.encoder.codec.spec.input: ids}
        return self.encoder.sessions.run_chain((self.spec.graph,), arrays)[self.spec.output]


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    odds = np.exp(logits - logits.max())
    shares: NDArray[np.float64] = odds / odds.sum()
    return shares
