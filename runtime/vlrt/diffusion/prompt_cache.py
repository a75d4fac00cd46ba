"""Outputs of text encoders, kept by content: in memory, and as a bounded folder of files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.whole_file import write_whole

Array = NDArray[Any]

_FORMAT = "1"
_REMEMBERED = 16


class PromptCache:
    """Named arrays by a digest of all they depend on; the least recently used go first.

    A file that is damaged counts as absent; a folder that cannot be written costs time, not the result.

    Args:
        folder: of the files; the user's cache folder where `None`.
        most_bytes: size that the folder is kept below.
        keeps: whether anything is kept at all.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = 256 << 20, keeps: bool = True) -> None:
        self.folder = folder or zoo.cache_folder() / "prompt-states"
        self.most_bytes = most_bytes
        self.keeps = keeps
        self._remembered: OrderedDict[str, dict[str, Array]] = OrderedDict()

    def get(self, key: str) -> dict[str, Array] | None:
        """The arrays kept under a key, or `None`."""
        if not self.keeps:
            return None
        found = self._remembered.get(key) or _read(self._path(key))
        if found is not None:
            self._remember(key, found)
            with contextlib.suppress(OSError):
                os.utime(self._path(key))
        return found

    def put(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Keeps arrays under a key."""
        if not self.keeps:
            return
        self._remember(key, dict(arrays))
        content = io.BytesIO()
        named: dict[str, Any] = {f"array.{name}": array for name, array in arrays.items()}
        np.savez(content, **named)
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(key), content.getvalue())
            self._shrink()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"

    def _remember(self, key: str, arrays: dict[str, Array]) -> None:
        self._remembered[key] = arrays
        self._remembered.move_to_end(key)
        while len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)

    def _shrink(self) -> None:
        found = sorted(((p.stat().st_mtime, p.stat().st_size, p) for p in self.folder.glob("*.npz")), reverse=True)
        total = 0
        for _, size, path in found:
            total += size
            if total > self.most_bytes:
                path.unlink(missing_ok=True)


def key_of(bundle: Bundle, roles: Iterable[str], device: str, inputs: Mapping[str, Array]) -> str:
    """A digest of everything that the outputs of graphs depend on: the files' content, the device, the inputs."""
    digest = hashlib.sha256(f"{_FORMAT} {device}".encode())
    for role in roles:
        graph = bundle.manifest.graphs[role]
        for name in (graph.file, *graph.external):
            digest.update(f"\n{role} {bundle.digest(name)}".encode())
    for name, array in sorted(inputs.items()):
        digest.update(f"\n{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Array] | None:
    try:
        # From memory: NumPy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            return {name.removeprefix("array."): stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError):
        return None
