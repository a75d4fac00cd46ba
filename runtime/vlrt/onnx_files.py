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
from vlrt.protobuf import Reader, messages

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
            return set(_locations(Reader(stream.fileno()), 0, size, "model", 0))
    except OSError as error:
        raise BundleError(f"`{path.name}` cannot be read: {error.strerror}", "copy the bundle again") from None
    except ValueError:
        raise BundleError(f"`{path.name}` is not an ONNX graph", "copy the bundle again, or export it again") from None


def _locations(data: Reader, start: int, end: int, kind: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    inner = _MESSAGES[kind]
    for number, first, last in messages(data, start, end):
        if inner.get(number) == "entry":
            yield from _entry(data, first, last)
        elif number in inner:
            yield from _locations(data, first, last, inner[number], depth + 1)
        elif kind == "node" and number == _OP_TYPE and data.bytes(first, min(last, first + 10)) == b"EPContext":
            what = "a graph has an `EPContext` node, which reads files of its own"
            raise BundleError(what, "do not trust this bundle")


def _entry(data: Reader, start: int, end: int) -> Iterator[str]:
    """The value of one key-value pair of `external_data` if it is the location; of repeated fields the last counts."""
    fields = {number: data.bytes(first, last) for number, first, last in messages(data, start, end)}
    if fields.get(_KEY) == b"location":
        yield fields.get(_VALUE, b"").decode("utf-8", "backslashreplace")
