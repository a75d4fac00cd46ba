"""Which files an ONNX graph would make its engine read, found without an ONNX library.

ONNX Runtime opens whatever a tensor's ``external_data`` names below the graph's folder, and an ``EPContext`` node may
name any file. A bundle's graph may read only what its manifest lists, so both are looked for before it is loaded.
Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vlrt.errors import BundleError

_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {13: "entry"},
}
"""Message -> field number -> message in it; all that can lie between a model and a tensor's location."""

_OP_TYPE = 4
_KEY, _VALUE = 1, 2
_DEEPEST = 64
"""Nesting of messages; protobuf itself stops at 100."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Reader:
    """Bytes of a file by their offset, through a small window: most of a graph is weights, which are stepped over.

    Not a memory map: a file that is truncated while it is mapped ends the process.
    """

    _WINDOW = 4096

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._start = 0
        self._window = b""

    def byte(self, position: int) -> int:
        place = position - self._start
        if not 0 <= place < len(self._window):
            self._start, place = position, 0
            self._window = self.bytes(position, position + self._WINDOW)
            if not self._window:
                raise ValueError("the file ended early")
        return self._window[place]

    def bytes(self, start: int, end: int) -> bytes:
        return os.pread(self._descriptor, end - start, start)


def external_files(path: Path) -> set[str]:
    """Locations that the tensors of an ONNX graph name, each as it is written there.

    Raises:
        BundleError: not a protobuf message, nested too deeply, or with a node that reads files of its own.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if not size:
                raise ValueError("an empty file")
            return set(_locations(_Reader(stream.fileno()), 0, size, "model", 0))
    except OSError as error:
        raise BundleError(f"`{path.name}` cannot be read: {error.strerror}", "copy the bundle again") from None
    except ValueError:
        raise BundleError(f"`{path.name}` is not an ONNX graph", "copy the bundle again, or export it again") from None


def _locations(data: _Reader, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    inner = _MESSAGES[kind]
    for number, first, last in _fields(data, start, end):
        if inner.get(number) == "entry":
            yield from _entry(data, first, last)
        elif number in inner:
            yield from _locations(data, first, last, inner[number], depth + 1)
        elif kind == "node" and number == _OP_TYPE and data.bytes(first, min(last, first + 10)) == b"EPContext":
            what = "a graph has an `EPContext` node, which reads files of its own"
            raise BundleError(what, "do not trust this bundle")


def _entry(data: _Reader, start: int, end: int) -> Iterator[str]:
    """The value of one key-value pair of `external_data` if it is the location; of repeated fields the last counts."""
    fields = {number: data.bytes(first, last) for number, first, last in _fields(data, start, end)}
    if fields.get(_KEY) == b"location":
        yield fields.get(_VALUE, b"").decode("utf-8", "backslashreplace")


def _fields(data: _Reader, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first and last offset of every length-delimited field of a message; the others are stepped over."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, position = _varint(data, position, end)
            if length > end - position:
                raise ValueError("a field goes beyond its message")
            yield number, position, position + length
            position += length
        elif wire == _VARINT:
            _, position = _varint(data, position, end)
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("groups are not used by ONNX")
    if position != end:
        raise ValueError("a field goes beyond its message")


def _varint(data: _Reader, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data.byte(position)
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number goes beyond its message")
