"""Protocol buffers read field by field, without a library and without reading what is stepped over, and written.

Wire format: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types: a whole number, eight bytes, a length and as many bytes, four bytes."""


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


class Content:
    """Bytes in memory, read as `Reader` reads a file's."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def byte(self, position: int) -> int:
        if position >= len(self._content):
            raise ValueError("the content ended early")
        return self._content[position]

    def bytes(self, start: int, end: int) -> bytes:
        return self._content[start:end]


Source = Reader | Content


def messages(data: Source, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first and last offset of every length-delimited field of a message; the others are stepped over.

    Raises:
        ValueError: not a protocol buffer.
    """
    for number, wire, first, last in fields(data, start, end):
        if wire == BYTES:
            yield number, first, last


def numbers(data: Source, start: int, end: int) -> dict[int, int]:
    """Whole numbers of a message by field number; of repeated fields the last counts.

    Raises:
        ValueError: not a protocol buffer.
    """
    return {number: value for number, wire, value, _ in fields(data, start, end) if wire == VARINT}


def fields(data: Source, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, and first and last offset of every field; of a whole number its value and last offset.

    Raises:
        ValueError: not a protocol buffer.
    """
    position = start
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if wire == BYTES:
            length, position = _varint(data, position, end)
            if length > end - position:
                raise ValueError("a field goes beyond its message")
            yield number, wire, position, position + length
            position += length
        elif wire == VARINT:
            value, position = _varint(data, position, end)
            yield number, wire, value, position
        elif wire in (FIXED32, FIXED64):
            first, position = position, position + (4 if wire == FIXED32 else 8)
            yield number, wire, first, position
        else:
            raise ValueError("groups are not used by ONNX")
    if position != end:
        raise ValueError("a field goes beyond its message")


def _varint(data: Source, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data.byte(position)
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("a number goes beyond its message")


def signed(value: int) -> int:
    """A whole number as it was read, in two's complement of 64 bits, with its sign."""
    return value - (1 << 64) if value >> 63 else value


def write_number(number: int, value: int) -> bytes:
    """A field that is a whole number, of either sign."""
    return _written(number << 3 | VARINT) + _written(value & ((1 << 64) - 1))


def write_bytes(number: int, content: bytes) -> bytes:
    """A field that is text, bytes or a message."""
    return _written(number << 3 | BYTES) + _written(len(content)) + content


def write_float(number: int, value: float) -> bytes:
    """A field that is a number in single precision."""
    return _written(number << 3 | FIXED32) + struct.pack("<f", value)


def copy_field(data: Source, field: tuple[int, int, int, int]) -> bytes:
    """A field as `fields` found it, written again."""
    number, wire, first, last = field
    if wire == VARINT:
        return write_number(number, first)
    content = data.bytes(first, last)
    return write_bytes(number, content) if wire == BYTES else _written(number << 3 | wire) + content


def _written(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)
