"""The weights of an ONNX graph: read where they lie, copied, made anew.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlrt.device_graph.nodes import whole_numbers
from vlrt.protobuf import BYTES, VARINT, Content, fields, messages, write_bytes, write_number

Array = npt.NDArray[Any]

FLOAT, UINT8, INT8, INT32, INT64 = 1, 2, 3, 6, 7
DTYPES = {FLOAT: "<f4", UINT8: "u1", INT8: "i1", INT32: "<i4", INT64: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
"""Element types of ONNX whose values are read here; others are only carried along."""

_DIMS, _TYPE, _FLOATS, _INT32S, _INT64S, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 4, 5, 7, 8, 9, 13, 14
_KEY, _VALUE = 1, 2
_IS_EXTERNAL = 1
_CHUNK = 16 << 20


@dataclass(frozen=True)
class Tensor:
    """One weight of a graph.

    Args:
        name: its name in the graph.
        dims: its shape.
        element: its element type, as ONNX numbers them.
        content: its message as it was read; of a new one nothing.
        values: its values, if they lie in the message or are new.
        place: file, offset and bytes of its values, if they lie outside.
        made: gives its values, block by block, as they are written; of one that is too large to be held.
    """

    name: str
    dims: tuple[int, ...]
    element: int
    content: bytes = b""
    values: Array | None = None
    place: tuple[Path, int, int] | None = None
    made: Callable[[], Iterator[Array]] | None = None

    @property
    def size(self) -> int:
        """Bytes of the values; 0 where their element type is not known here."""
        return math.prod(self.dims) * np.dtype(DTYPES[self.element]).itemsize if self.element in DTYPES else 0

    def array(self) -> Array | None:
        """The values, mapped where they lie outside; `None` where they are of a kind that is not read."""
        if self.values is not None or self.place is None or self.element not in DTYPES:
            return self.values
        path, offset, _ = self.place
        return np.memmap(path, np.dtype(DTYPES[self.element]), "r", offset, self.dims) if self.size else None

    def blocks(self) -> Iterator[memoryview]:
        """The bytes of the values, in pieces."""
        if self.made is not None:
            yield from (block.data for block in self.made())
        elif self.place is not None:
            path, offset, length = self.place
            with open(path, "rb") as stream:
                stream.seek(offset)
                while length > 0:
                    piece = stream.read(min(length, _CHUNK))
                    if not piece:
                        raise ValueError(f"the values of `{self.name}` end early")
                    length -= len(piece)
                    yield memoryview(piece)
        elif self.values is not None:
            yield np.ascontiguousarray(self.values).data

    def write(self, location: tuple[str, int, int] | None = None) -> bytes:
        """The tensor's message: as it was read, with its values in it, or with the file, offset and bytes of them."""
        if location is None and self.content:
            return self.content
        parts = [write_number(_DIMS, size) for size in self.dims]
        parts += [write_number(_TYPE, self.element), write_bytes(_NAME, self.name.encode())]
        if location is None:
            return b"".join(parts) + write_bytes(_RAW, b"".join(bytes(block) for block in self.blocks()))
        for key, value in zip(("location", "offset", "length"), location):
            entry = write_bytes(_KEY, key.encode()) + write_bytes(_VALUE, str(value).encode())
            parts.append(write_bytes(_EXTERNAL, entry))
        return b"".join(parts) + write_number(_LOCATION, _IS_EXTERNAL)


def read_tensor(content: bytes, folder: Path) -> Tensor:
    """A weight from its message; values outside lie in files of the folder.

    Raises:
        ValueError: not a tensor, or its values lie in no file of the folder.
    """
    data = Content(content)
    dims: list[int] = []
    element, name = 0, ""
    places: dict[str, str] = {}
    values: dict[int, bytes] = {}
    wholes: list[int] = []
    for number, wire, first, last in fields(data, 0, len(content)):
        if number == _DIMS:
            dims += whole_numbers(data, (number, wire, first, last))
        elif number == _TYPE and wire == VARINT:
            element = first
        elif number == _NAME:
            name = data.bytes(first, last).decode()
        elif number == _EXTERNAL:
            entry = {n: data.bytes(*span).decode() for n, *span in messages(data, first, last)}
            places[entry.get(_KEY, "")] = entry.get(_VALUE, "")
        elif number in (_INT32S, _INT64S):
            wholes += whole_numbers(data, (number, wire, first, last))
        elif number == _RAW or (number == _FLOATS and wire == BYTES):
            values[number] = values.get(number, b"") + data.bytes(first, last)
    shape = tuple(dims)
    if places:
        return Tensor(name, shape, element, content, place=_place(folder, places))
    if wholes and element in (INT32, INT64):
        values[_RAW] = np.array(wholes, DTYPES[element]).tobytes()
    return Tensor(name, shape, element, content, _values(shape, element, values))


def new_tensor(name: str, values: Array) -> Tensor:
    """A weight of these values, of float32, int8 or int32."""
    element = next(code for code, dtype in DTYPES.items() if np.dtype(dtype) == values.dtype)
    return Tensor(name, values.shape, element, values=values)


def _values(dims: tuple[int, ...], element: int, found: dict[int, bytes]) -> Array | None:
    """Values that lie in the message: as raw bytes, or packed floats; what lies otherwise is carried along unread."""
    content = found.get(_RAW, found.get(_FLOATS) if element == FLOAT else None)
    if content is None or element not in DTYPES:
        return None
    values = np.frombuffer(content, np.dtype(DTYPES[element]))
    if values.size != math.prod(dims):
        raise ValueError(f"a tensor has {values.size} values, its shape says {math.prod(dims)}")
    return values.reshape(dims)


def _place(folder: Path, found: dict[str, str]) -> tuple[Path, int, int]:
    path = folder / os.path.basename(found.get("location", ""))
    offset = int(found.get("offset") or 0)
    length = int(found.get("length") or path.stat().st_size - offset)
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise ValueError(f"a tensor goes beyond `{path.name}`")
    return path, offset, length
