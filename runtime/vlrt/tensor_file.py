"""Files of named arrays, `.npz` and `.safetensors`, read with NumPy alone and never unpickled."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlrt.errors import VlrtError

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "|u1"}
_LARGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class TensorFile:
    """Arrays by name, and what the file says about them in words."""

    arrays: Mapping[str, NDArray[Any]]
    words: Mapping[str, str] = field(default_factory=dict)


def read_tensors(path: Path) -> TensorFile:
    """Reads all arrays of a file; zero-dimensional text arrays of an `.npz` count as words.

    Raises:
        VlrtError: it does not exist, is of another kind, or is damaged.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path.read_bytes())
        if path.suffix == ".npz":
            return _read_npz(path.read_bytes())
    except FileNotFoundError:
        raise VlrtError(f"`{path}` does not exist", "check the name") from None
    except OSError as error:
        raise VlrtError(f"`{path}` cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, IndexError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        raise VlrtError(f"`{path.name}` is damaged: {error}", "make or copy the file again") from None
    raise VlrtError(f"`{path.name}` is neither .npz nor .safetensors", "convert it with `vlrt export clip-prompts`")


def _read_npz(data: bytes) -> TensorFile:
    arrays: dict[str, NDArray[Any]] = {}
    words: dict[str, str] = {}
    # From memory: NumPy leaves a damaged file open.
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        for name in stored.files:
            value = stored[name]
            if value.dtype.kind == "U" and value.ndim == 0:
                words[name] = str(value)
            else:
                arrays[name] = value
    return TensorFile(arrays, words)


def _read_safetensors(data: bytes) -> TensorFile:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _LARGEST_HEADER):
        raise ValueError("its header is longer than the file")
    header = json.loads(data[8 : 8 + length])
    words = header.pop("__metadata__", {})
    body = memoryview(data)[8 + length :]
    return TensorFile({name: _array(entry, body) for name, entry in header.items()}, words)


def _array(entry: Mapping[str, Any], body: memoryview) -> NDArray[Any]:
    dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
    start, end = entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)) or end > len(body):
        raise ValueError("a tensor reaches beyond the end of the file")
    if end - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {list(shape)} has {end - start} bytes")
    return np.frombuffer(body[start:end], dtype).reshape(shape)
