"""Search: the photographs of a folder that a sentence describes best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.engines import EngineOptions
from vlrt.errors import ImageError, UsageError
from vlrt.photo_index import PhotoIndex

_BATCH = 8
"""Photographs per run of the image encoder; more gain nothing on a CPU."""

_SAVE_EVERY = 256


@dataclass(frozen=True)
class Found:
    """A photograph and the cosine of its embedding with the sentence's."""

    path: Path
    score: float


@dataclass(frozen=True)
class Failure:
    """A photograph that could not be read, and why."""

    path: Path
    error: str


class Searcher:
    """Finds photographs by sentence; embeddings of a folder are kept and only what changed is computed again.

    Args:
        bundle: one that serves ``search``.
        options: device and threads.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require("search")
        self.encoder = DualEncoder(bundle, options)

    def index(
        self, photographs: Sequence[Path], store: Path, progress: Callable[[int], None] = lambda done: None
    ) -> tuple[PhotoIndex, list[Failure]]:
        """Embeddings of photographs, those in `store` taken from there if size and time still agree.

        The store is written every few hundred photographs and at the end, also of an interrupted run.

        Args:
            photographs: files.
            store: file of the index; made where it does not exist.
            progress: told how many photographs are done.
        """
        index = PhotoIndex.open(store, self.encoder.bundle, self.encoder.spec.dimension)
        missing, failures = index.missing(photographs), []
        done = len(photographs) - len(missing)
        progress(done)
        try:
            for start in range(0, len(missing), _BATCH):
                batch = missing[start : start + _BATCH]
                failures += self._add(index, batch)
                progress(done + start + len(batch))
                if (start // _BATCH + 1) % (_SAVE_EVERY // _BATCH) == 0:
                    index.save()
        finally:
            index.save()
        return index, [Failure(path, why) for path, why in failures]

    def _add(self, index: PhotoIndex, batch: Sequence[Path]) -> list[tuple[Path, str]]:
        try:
            index.add(batch, self.encoder.images(batch))
            return []
        except ImageError as error:
            if len(batch) == 1:
                return [(batch[0], str(error.what))]
        return [failure for path in batch for failure in self._add(index, [path])]

    def __call__(self, text: str, index: PhotoIndex, photographs: Iterable[Path], top: int = 8) -> list[Found]:
        """The `top` photographs closest to a sentence, best first; equal scores in the order of their names.

        Raises:
            UsageError: an empty sentence or `top` below one.
        """
        if top < 1:
            raise UsageError(f"`top` is {top}, expected at least 1")
        sentence = self.encoder.texts([text])[0]
        paths, vectors = index.vectors(sorted(photographs))
        scores = vectors @ sentence
        order = np.argsort(-scores, kind="stable")[:top]
        return [Found(paths[i], float(scores[i])) for i in order]
