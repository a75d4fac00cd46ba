"""Embeddings of a folder's photographs, kept on disk beside their sizes and times."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlrt.bundle import Bundle
from vlrt.errors import VlrtError
from vlrt.whole_file import write_whole
from vlrt.zoo import cache_folder


def default_store(folder: Path, bundle: Bundle) -> Path:
    """Where a folder's index is kept unless the user says otherwise: the cache, by folder and bundle."""
    key = hashlib.sha256(f"{folder.resolve()}\n{bundle.name}".encode()).hexdigest()[:24]
    return cache_folder() / "search" / f"{key}.npz"


class PhotoIndex:
    """Photographs by absolute path: size, modification time and embedding. Use `PhotoIndex.open`."""

    def __init__(self, store: Path, model: str, dimension: int) -> None:
        self.store = store
        self.model = model
        self.dimension = dimension
        self._entries: dict[str, tuple[int, int]] = {}
        self._vectors: dict[str, NDArray[np.float32]] = {}
        self._changed = False

    @classmethod
    def open(cls, store: Path, bundle: Bundle, dimension: int) -> PhotoIndex:
        """Reads an index, or starts one: where there is none yet, or one of another model.

        Raises:
            VlrtError: the file is something else, or damaged; it is left as it is.
        """
        index = cls(store, bundle.identity, dimension)
        if not os.path.lexists(store):
            return index
        try:
            with open(store, "rb") as stream, np.load(stream, allow_pickle=False) as data:
                listed = json.loads(str(data["manifest"]))
                vectors = np.asarray(data["vectors"], dtype=np.float32)
            if listed["model"] == index.model and vectors.shape == (len(listed["photographs"]), dimension):
                for (name, size, time), vector in zip(listed["photographs"], vectors):
                    index._entries[str(name)], index._vectors[str(name)] = (int(size), int(time)), vector
        except Exception as error:  # noqa: BLE001 - NumPy, zipfile and json raise a dozen kinds for a foreign file
            reason = getattr(error, "strerror", None) or "it is something else, or damaged"
            what = f"`{store}` cannot be read as an index of photographs: {reason}"
            raise VlrtError(what, "remove it, then it is made again; or choose another with --index") from None
        return index

    def __len__(self) -> int:
        return len(self._entries)

    def missing(self, photographs: Sequence[Path]) -> list[Path]:
        """Those that are not in the index as they are now."""
        return [path for path in photographs if not self._knows(path)]

    def _knows(self, path: Path) -> bool:
        entry = self._entries.get(_key(path))
        return entry is not None and entry == _stamp(path)

    def add(self, photographs: Sequence[Path], vectors: NDArray[np.float32]) -> None:
        """Takes embeddings [N, D] of photographs."""
        for path, vector in zip(photographs, vectors):
            stamp = _stamp(path)
            if stamp is not None:
                self._entries[_key(path)], self._vectors[_key(path)] = stamp, vector
                self._changed = True

    def vectors(self, photographs: Sequence[Path]) -> tuple[list[Path], NDArray[np.float32]]:
        """Those of the photographs that are in the index as they are now, and their embeddings [N, D]."""
        known = [path for path in photographs if self._knows(path)]
        if not known:
            return [], np.zeros((0, self.dimension), np.float32)
        return known, np.stack([self._vectors[_key(path)] for path in known])

    def save(self) -> None:
        """Writes the index whole, under a temporary name first; does nothing where nothing changed."""
        if not self._changed:
            return
        listed = [[name, *stamp] for name, stamp in self._entries.items()]
        vectors = np.stack(list(self._vectors.values()))
        text = json.dumps({"model": self.model, "photographs": listed})
        content = io.BytesIO()
        np.savez(content, manifest=np.asarray(text), vectors=vectors)
        try:
            self.store.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.store, content.getvalue())
        except OSError as error:
            what = f"the index `{self.store}` cannot be written: {error.strerror}"
            raise VlrtError(what, "set VLRT_CACHE to a folder that can be written, or use --index FILE") from None
        self._changed = False


def _key(path: Path) -> str:
    return os.path.abspath(path)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
