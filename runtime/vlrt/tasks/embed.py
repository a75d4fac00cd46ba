"""Embedding: photographs and sentences as vectors of one space, and how similar they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder, Vectors
from vlrt.engines import EngineOptions
from vlrt.errors import UsageError
from vlrt.image import ImageLike

_BATCH = 8
"""Photographs per run of the image tower; more gain nothing on a CPU."""

_ROWS = 32
"""Sentences per run of the text tower."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors of length one, so that a dot product is the cosine.

    Args:
        images: float32 [photographs, D].
        texts: float32 [sentences, D].
        scale: what the model multiplies a cosine by before a softmax.
    """

    images: Vectors
    texts: Vectors
    scale: float

    @property
    def similarity(self) -> NDArray[np.float32]:
        """Cosines of everything with everything, photographs first: float32 [n, n]."""
        every = np.concatenate([self.images, self.texts])
        table: NDArray[np.float32] = every @ every.T
        return table

    @property
    def logits(self) -> NDArray[np.float32]:
        """Scale · cosine of each photograph with each sentence: float32 [photographs, sentences]."""
        scaled: NDArray[np.float32] = (self.images @ self.texts.T) * np.float32(self.scale)
        return scaled


class Embedder:
    """Embeds photographs and sentences with the dual encoder of a bundle.

    Args:
        bundle: one that serves ``embed``.
        options: device and threads.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require("embed")
        self.encoder = DualEncoder(bundle, options)

    def __call__(self, images: ImageLike | Sequence[ImageLike] = (), texts: str | Sequence[str] = ()) -> Embeddings:
        """Vectors of photographs and sentences.

        Args:
            images: photographs, or a single one.
            texts: sentences, or a single one; overlong ones are cut, with a warning.

        Raises:
            ImageError: a photograph cannot be read.
            UsageError: nothing was given, or an empty sentence.
        """
        several = isinstance(images, (list, tuple))
        pictures: list[ImageLike] = list(cast("Sequence[ImageLike]", images)) if several else [cast(ImageLike, images)]
        sentences = [texts] if isinstance(texts, str) else list(texts)
        if not pictures and not sentences:
            raise UsageError("there is nothing to embed", "give photographs, sentences, or both")
        return Embeddings(self._images(pictures), self._texts(sentences), self.encoder.spec.scale)

    def _images(self, pictures: Sequence[ImageLike]) -> Vectors:
        starts = range(0, max(len(pictures), 1), _BATCH)
        return np.concatenate([self.encoder.images(pictures[start : start + _BATCH]) for start in starts])

    def _texts(self, sentences: Sequence[str]) -> Vectors:
        starts = range(0, max(len(sentences), 1), _ROWS)
        return np.concatenate([self.encoder.texts(sentences[start : start + _ROWS]) for start in starts])
