"""A node of an ONNX graph: read, made anew, written.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from vlrt.protobuf import BYTES, VARINT, Content, fields, messages, signed, write_bytes, write_float, write_number

Value = int | float | str | tuple[int, ...]
"""What an attribute holds, as far as anything here reads it or writes it."""

_INPUT, _OUTPUT, _NAME, _OPERATOR, _ATTRIBUTE, _DOMAIN = 1, 2, 3, 4, 5, 7
_KEY, _FLOAT, _WHOLE, _TEXT, _GRAPH, _WHOLES, _GRAPHS, _KIND = 1, 2, 3, 4, 6, 8, 11, 20
_KIND_FLOAT, _KIND_WHOLE, _KIND_TEXT, _KIND_WHOLES = 1, 2, 3, 7
_GRAPH_NODE, _GRAPH_TENSOR, _GRAPH_OUTPUT = 1, 5, 12
_TENSOR_OUTSIDE = 13
_STANDARD = ("", "ai.onnx")


@dataclass(eq=False)
class Node:
    """One operator of a graph.

    Args:
        op_type, domain: which; the standard's own domain is the empty one.
        inputs, outputs: names of tensors; an empty one stands for what is left out.
        attributes: those that are numbers, text, or lists of whole numbers.
        captured: names that graphs within its attributes may take from around it.
        content: as it was read, which is what is written; of a new one nothing.
        position: nodes stand in the order of their positions.
    """

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Value] = field(default_factory=dict)
    captured: frozenset[str] = frozenset()
    content: bytes = b""
    position: int = 0

    @property
    def kind(self) -> str:
        """The operator with its domain before it, where that is not the standard's."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type

    def input(self, place: int) -> str:
        """Name of an input, empty where it is left out."""
        return self.inputs[place] if place < len(self.inputs) else ""

    def whole(self, name: str, default: int) -> int:
        """An attribute that is a whole number."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        value = self.attributes.get(name, default)
        return float(value) if isinstance(value, int | float) else default

    def text(self, name: str, default: str) -> str:
        """An attribute that is text."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, str) else default

    def wholes(self, name: str) -> tuple[int, ...] | None:
        """An attribute that is a list of whole numbers; `None` where there is none."""
        value = self.attributes.get(name)
        return value if isinstance(value, tuple) else None

    def write(self) -> bytes:
        """The node's message."""
        if self.content:
            return self.content
        parts = [write_bytes(_INPUT, name.encode()) for name in self.inputs]
        parts += [write_bytes(_OUTPUT, name.encode()) for name in self.outputs]
        parts += [write_bytes(_NAME, self.outputs[0].encode()), write_bytes(_OPERATOR, self.op_type.encode())]
        parts += [write_bytes(_ATTRIBUTE, _write_attribute(name, value)) for name, value in self.attributes.items()]
        parts.append(write_bytes(_DOMAIN, self.domain.encode()))
        return b"".join(parts)


def read_node(content: bytes) -> Node:
    """A node from its message.

    Raises:
        ValueError: not a node.
    """
    data = Content(content)
    names: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _OPERATOR: [], _DOMAIN: []}
    attributes: dict[str, Value] = {}
    captured: set[str] = set()
    for number, first, last in messages(data, 0, len(content)):
        if number in names:
            names[number].append(data.bytes(first, last).decode())
        elif number == _ATTRIBUTE:
            captured.update(_captured(data.bytes(first, last)))
            key, value = _read_attribute(data.bytes(first, last))
            if value is not None:
                attributes[key] = value
    operator, domain = ("".join(names[number][-1:]) for number in (_OPERATOR, _DOMAIN))
    domain = "" if domain in _STANDARD else domain
    inputs, outputs = tuple(names[_INPUT]), tuple(names[_OUTPUT])
    return Node(operator, domain, inputs, outputs, attributes, frozenset(captured), content)


def _read_attribute(content: bytes) -> tuple[str, Value | None]:
    data, key, value, wholes = Content(content), "", None, []
    kind = 0
    for number, wire, first, last in fields(data, 0, len(content)):
        if number == _KEY:
            key = data.bytes(first, last).decode()
        elif number == _KIND:
            kind = first
        elif number == _WHOLES:
            wholes += whole_numbers(data, (number, wire, first, last))
        elif number == _FLOAT:
            (value,) = struct.unpack("<f", data.bytes(first, last))
        elif number == _WHOLE:
            value = signed(first)
        elif number == _TEXT:
            value = data.bytes(first, last).decode("utf-8", "replace")
    if kind == _KIND_WHOLES:
        return key, tuple(wholes)
    return key, value if kind in (_KIND_FLOAT, _KIND_WHOLE, _KIND_TEXT) else None


def whole_numbers(data: Content, found: tuple[int, int, int, int]) -> list[int]:
    """Whole numbers of a repeated field, packed into one or each by itself."""
    _, wire, first, last = found
    if wire == VARINT:
        return [signed(first)]
    if wire != BYTES:
        raise ValueError("whole numbers of a fixed size")
    numbers = []
    value = shift = 0
    for byte in data.bytes(first, last):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(signed(value))
            value = shift = 0
    return numbers


def _write_attribute(name: str, value: Value) -> bytes:
    key = write_bytes(_KEY, name.encode())
    if isinstance(value, str):
        return key + write_bytes(_TEXT, value.encode()) + write_number(_KIND, _KIND_TEXT)
    if isinstance(value, int):
        return key + write_number(_WHOLE, value) + write_number(_KIND, _KIND_WHOLE)
    if isinstance(value, float):
        return key + write_float(_FLOAT, value) + write_number(_KIND, _KIND_FLOAT)
    return key + b"".join(write_number(_WHOLES, one) for one in value) + write_number(_KIND, _KIND_WHOLES)


def _captured(attribute: bytes) -> Iterator[str]:
    """Every name that a graph in an attribute reads or gives out: some of them may come from around the node."""
    data = Content(attribute)
    for number, first, last in messages(data, 0, len(attribute)):
        if number not in (_GRAPH, _GRAPHS):
            continue
        for part, start, end in messages(data, first, last):
            if part == _GRAPH_NODE:
                node = read_node(data.bytes(start, end))
                yield from node.inputs
                yield from node.captured
            elif part == _GRAPH_TENSOR and any(n == _TENSOR_OUTSIDE for n, *_ in messages(data, start, end)):
                raise ValueError("a graph within a node has weights of its own")  # they would be looked for elsewhere
            elif part == _GRAPH_OUTPUT:
                yield from (data.bytes(*span).decode() for n, *span in messages(data, start, end) if n == 1)
