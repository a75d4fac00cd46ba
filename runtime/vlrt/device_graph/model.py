"""An ONNX model that can be edited, without an ONNX library; what is not understood is carried along as it is.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from vlrt.device_graph.nodes import Node, read_node
from vlrt.device_graph.tensors import Array, Tensor, read_tensor
from vlrt.protobuf import Content, copy_field, fields, messages, numbers, write_bytes, write_number

Dim = int | str
Shape = tuple[Dim, ...]
"""Sizes of a tensor's axes: a number, or a name that stands for the same number wherever it stands."""

DOMAIN = "vlrt"
_GRAPH, _OPSET = 7, 8
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _VALUE = 1, 5, 11, 12, 13
_EXTERNAL_FROM = 1024
"""Bytes from which the values of a tensor lie outside, as onnxruntime was told too."""

_PAGE, _LINE = 4096, 64
_MOST_GRAPH = 1 << 30


class Model:
    """The graph of a model.

    Args:
        path: an ONNX file whose large weights lie outside, in files of its folder.

    Raises:
        ValueError: not such a file.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if path.stat().st_size > _MOST_GRAPH:
            raise ValueError("weights lie in the graph's own file")
        self._nodes: dict[int, Node] = {}
        self.tensors: dict[str, Tensor] = {}
        self.inputs: dict[str, Shape | None] = {}
        self.outputs: dict[str, Shape | None] = {}
        self.described: dict[str, Shape | None] = {}
        self.elements: dict[str, int] = {}
        self._around, self._beside = b"", b""
        content = path.read_bytes()
        data = Content(content)
        for found in fields(data, 0, len(content)):
            if found[0] == _GRAPH:
                self._read_graph(Content(content), found[2], found[3], path.parent)
            else:
                self._around += copy_field(data, found)
        self._producers = {name: node for node in self._nodes.values() for name in node.outputs if name}
        self._uses: Counter[str] = Counter()
        self._readers: dict[str, list[Node]] = {}
        for node in self._nodes.values():
            self._count(node)

    def _read_graph(self, data: Content, start: int, end: int, folder: Path) -> None:
        described = {_INPUT: self.inputs, _OUTPUT: self.outputs, _VALUE: self.described}
        for found in fields(data, start, end):
            number, _, first, last = found
            if number == _NODE:
                node = read_node(data.bytes(first, last))
                node.position = len(self._nodes)
                self._nodes[node.position] = node
            elif number == _INITIALIZER:
                tensor = read_tensor(data.bytes(first, last), folder)
                self.tensors[tensor.name] = tensor
            else:
                if number in described:
                    name, shape, self.elements[name] = _read_value(data, first, last)
                    described[number][name] = shape
                self._beside += copy_field(data, found)

    @property
    def nodes(self) -> list[Node]:
        """All nodes, in their order."""
        return [self._nodes[position] for position in sorted(self._nodes)]

    def producer(self, name: str) -> Node | None:
        """The node that gives out `name`; `None` for inputs and weights."""
        return self._producers.get(name)

    def constant(self, name: str) -> Array | None:
        """The values of a weight that no caller may replace; `None` where `name` is none, or none that is read."""
        tensor = self.tensors.get(name)
        return tensor.array() if tensor is not None and name not in self.inputs else None

    def readers(self, name: str) -> list[Node]:
        """The nodes that read `name`, each once; graphs within nodes count as well."""
        return list(dict.fromkeys(self._readers.get(name, ())))

    def sole_reader(self, name: str) -> Node | None:
        """The node that is alone in reading `name`, and reads it once; `None` also where callers get `name`."""
        if self._uses[name] != 1 or name in self.outputs:
            return None
        (node,) = self._readers[name]
        return None if name in node.captured else node

    def add(self, tensor: Tensor) -> str:
        """Takes in a weight, unless one of its name is there; returns the name."""
        self.tensors.setdefault(tensor.name, tensor)
        return tensor.name

    def replace(self, old: Sequence[Node], new: Node) -> None:
        """Puts a node in the place of others, of which the last gives out what it gives out."""
        new.position = old[-1].position
        for node in old:
            self._remove(node)
        self._nodes[new.position] = new
        self._producers.update((name, new) for name in new.outputs if name)
        self._count(new)

    def remove_unused(self) -> None:
        """Removes nodes and weights that nothing reads any more."""
        for node in reversed(self.nodes):
            if not any(self._uses[name] or name in self.outputs for name in node.outputs):
                self._remove(node)
        for name in list(self.tensors):
            if not self._uses[name] and name not in self.outputs and name not in self.inputs:
                del self.tensors[name]

    def _remove(self, node: Node) -> None:
        del self._nodes[node.position]
        for name in node.outputs:
            self._producers.pop(name, None)
        for name in _read_by(node):
            self._uses[name] -= 1
            self._readers[name].remove(node)

    def _count(self, node: Node) -> None:
        for name in _read_by(node):
            self._uses[name] += 1
            self._readers.setdefault(name, []).append(node)

    def write(self, graph: Path, weights: Path) -> None:
        """Writes the model, its large weights each from the start of a page or line of the second file.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        with open(weights, "wb") as stream:
            tensors = [write_bytes(_INITIALIZER, message) for message in _write_tensors(self.tensors.values(), stream)]
        nodes = [write_bytes(_NODE, node.write()) for node in self.nodes]
        content = self._beside + b"".join(nodes) + b"".join(tensors)
        graph.write_bytes(self._around + _opset() + write_bytes(_GRAPH, content))


def _write_tensors(tensors: Iterable[Tensor], stream: BinaryIO) -> Iterator[bytes]:
    for tensor in tensors:
        if tensor.size < _EXTERNAL_FROM and tensor.place is None:
            yield tensor.write()
            continue
        unit = _PAGE if tensor.size >= _PAGE else _LINE
        start = -(-stream.tell() // unit) * unit
        stream.seek(start)
        for block in tensor.blocks():
            stream.write(block)
        yield tensor.write((Path(stream.name).name, start, stream.tell() - start))


def _read_by(node: Node) -> list[str]:
    return [name for name in (*node.inputs, *sorted(node.captured)) if name]


def _opset() -> bytes:
    return write_bytes(_OPSET, write_bytes(1, DOMAIN.encode()) + write_number(2, 1))


def _read_value(data: Content, start: int, end: int) -> tuple[str, Shape | None, int]:
    """Name, shape and type of a value; no shape, and 0, where the file tells none or it is not a tensor."""
    name, shape, element = "", None, 0
    for number, first, last in messages(data, start, end):
        if number == 1:
            name = data.bytes(first, last).decode()
        elif number == 2:
            kinds = [span for n, *span in messages(data, first, last) if n == 1]
            shapes = [span for kind in kinds for n, *span in messages(data, *kind) if n == 2]
            shape = tuple(_read_axes(data, *shapes[0])) if shapes else None
            element = numbers(data, *kinds[0]).get(1, 0) if kinds else 0
    if shape is None:
        return name, None, element
    return name, tuple(f"{name} axis {place}" if axis is None else axis for place, axis in enumerate(shape)), element


def _read_axes(data: Content, start: int, end: int) -> Iterator[Dim | None]:
    for _, first, last in messages(data, start, end):
        names = [data.bytes(*span).decode() for n, *span in messages(data, first, last) if n == 2]
        yield numbers(data, first, last).get(1) or "".join(names) or None
