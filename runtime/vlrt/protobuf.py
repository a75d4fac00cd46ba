"""Protocol buffers read field by field, without a library and without reading what is stepped over.

Wire format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Reader:
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


def messages(data: Reader, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first and last offset of every length-delimited field of a message; the others are stepped over.

    Raises:
        ValueError: not a protocol buffer.
    """
    for number, wire, first, last in _fields(data, start, end):
        if wire == _BYTES:
            yield number, first, last


def numbers(data: Reader, start: int, end: int) -> dict[int, int]:
    """Whole numbers of a message by field number; of repeated fields the last counts.

    Raises:
        ValueError: not a protocol buffer.
    """
    return {number: value for number, wire, value, _ in _fields(data, start, end) if wire == _VARINT}


def _fields(data: Reader, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and first and last offset of every field; of a whole number its value and last offset."""
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if wire == _BYTES:
            length, position = _varint(data, position, end)
            if length > end - position:
                raise ValueError("a field goes beyond its message")
            yield number, wire, position, position + length
            position += length
        elif wire == _VARINT:
            value, position = _varint(data, position, end)
            yield number, wire, value, position
        elif wire in (_FIXED32, _FIXED64):
            first, position = position, position + (4 if wire == _FIXED32 else 8)
            yield number, wire, first, position
        else:
            raise ValueError("groups are not used by ONNX")
    if position != end:
        raise ValueError("a field goes beyond its message")


def _varint(data: Reader, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data.byte(position)
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number goes beyond its message")
