"""Files of a picture's codes: `.json` for people and other programs, `.npz` for NumPy."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlrt.errors import UsageError, VlrtError
from vlrt.tensor_file import read_tensors
from vlrt.whole_file import write_whole

SUFFIXES = (".json", ".npz")
_LARGEST_FILE = 64 << 20
_MOST_CODES = 1 << 20


@dataclass(frozen=True)
class TokenGrid:
    """The codes of one picture, and what they are codes of.

    Args:
        codes: int64 [rows, columns].
        codebook: number of codes there are; 0 where the file does not say.
        factor: pixels along each side of what one code stands for; 0 where the file does not say.
        model: name of the bundle that made them.
    """

    codes: NDArray[np.int64]
    codebook: int = 0
    factor: int = 0
    model: str = ""

    def to_value(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "model": self.model,
            "codebook": self.codebook,
            "factor": self.factor,
            "tokens": self.codes.tolist(),
        }


def check_suffix(path: Path) -> None:
    """Raises `UsageError` unless the name ends as a file of codes does."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"`{path.name}` has no ending of a file of codes", "use .json or .npz")
    if not path.parent.is_dir():
        raise UsageError(f"the folder `{path.parent}` of `{path.name}` does not exist", "make it first")


def write_grid(path: Path, grid: TokenGrid) -> None:
    """Writes codes in the format of the name's ending, whole or not at all.

    Raises:
        VlrtError: the place cannot be written.
    """
    check_suffix(path)
    if path.suffix == ".json":
        content = (json.dumps(grid.to_value()) + "\n").encode()
    else:
        stream = io.BytesIO()
        codebook, factor = np.asarray(grid.codebook), np.asarray(grid.factor)
        model = np.asarray(grid.model, dtype=np.str_)
        np.savez(stream, tokens=grid.codes, codebook=codebook, factor=factor, model=model)
        content = stream.getvalue()
    try:
        write_whole(path, content)
    except OSError as error:
        raise VlrtError(f"`{path}` cannot be written: {error.strerror}", "choose another place with --out") from None


def read_grid(path: Path) -> TokenGrid:
    """Reads a file of codes: one of ours, or one that holds nothing but rows of numbers.

    Raises:
        VlrtError: it does not exist, is damaged, or holds no grid of whole numbers.
    """
    if path.suffix == ".npz":
        _check_unpacked(path)
        stored = read_tensors(path)
        numbers = {name: stored.arrays.get(name) for name in ("codebook", "factor")}
        counts = {name: _count(value.tolist() if value is not None else 0, path) for name, value in numbers.items()}
        return TokenGrid(_grid(stored.arrays.get("tokens"), path), **counts, model=stored.words.get("model", ""))
    value = _read_json(path)
    if isinstance(value, list):
        return TokenGrid(_grid(value, path))
    if not isinstance(value, dict):
        raise _no_grid(path)
    model = value.get("model", "")
    counts = {name: _count(value.get(name, 0), path) for name in ("codebook", "factor")}
    return TokenGrid(_grid(value.get("tokens"), path), **counts, model=model if isinstance(model, str) else "")


def _check_unpacked(path: Path) -> None:
    """Refuses an archive that would fill the memory; what else is wrong with it, its reader says."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # no archive, or one of an unknown compression: the reader opens it next and refuses it in its own words
    if size > _LARGEST_FILE:
        raise _too_large(path)


def _too_large(path: Path) -> VlrtError:
    return VlrtError(f"`{path.name}` is too large for a file of codes", "is it another file?")


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise _too_large(path)
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise VlrtError(f"`{path}` does not exist", "`vlrt run tokenize PHOTO --out FILE` makes one") from None
    except OSError as error:
        raise VlrtError(f"`{path}` cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise VlrtError(f"`{path.name}` is not JSON", "give a file of codes, .json or .npz") from None


def _grid(value: Any, path: Path) -> NDArray[np.int64]:
    if isinstance(value, list):
        value = _from_lists(value, path)
    if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.integer):
        raise _no_grid(path)
    if value.ndim == 3 and len(value) == 1:
        value = value[0]
    if value.ndim != 2 or not value.size or value.size > _MOST_CODES:
        raise _no_grid(path, f"; its shape is {list(value.shape)}")
    codes: NDArray[np.int64] = value.astype(np.int64)
    return codes


def _from_lists(rows: list[Any], path: Path) -> NDArray[np.int64]:
    """Rows of whole numbers, all of one length."""
    if not all(isinstance(row, list) and len(row) == len(rows[0]) for row in rows):
        raise _no_grid(path)
    flat = [code for row in rows for code in row]
    if not flat or not all(type(code) is int and abs(code) < 1 << 31 for code in flat):
        raise _no_grid(path)
    return np.asarray(rows, dtype=np.int64)


def _count(value: Any, path: Path) -> int:
    if type(value) is not int or not 0 <= value <= 1 << 24:
        raise _no_grid(path)
    return int(value)


def _no_grid(path: Path, more: str = "") -> VlrtError:
    what = f"`{path.name}` holds no grid of codes: rows of whole numbers of one length{more}"
    return VlrtError(what, "`vlrt run tokenize PHOTO --out FILE` makes one")
