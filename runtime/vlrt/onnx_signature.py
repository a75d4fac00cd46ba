"""The inputs, outputs and operators of an ONNX graph, read from its file without loading it.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlrt.errors import BundleError
from vlrt.manifest import TensorSpec
from vlrt.protobuf import Reader, messages, numbers

_GRAPH = 7
_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12
_OPERATOR, _DOMAIN = 4, 7
_TENSOR_NAME = 8
_NAME, _TYPE = 1, 2
_TENSOR_TYPE = 1
_ELEMENT_TYPE, _SHAPE = 1, 2
_DIMENSION = 1
_SIZE, _AXIS_NAME = 1, 2
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
}
_LONGEST_NAME = 512

_Span = tuple[int, int]


def signature(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a graph; axes without size or name get a name of their own.

    Raises:
        BundleError: the file cannot be read, is no ONNX graph, or has inputs that are not plain tensors.
    """
    found: dict[int, list[TensorSpec]] = {_INPUT: [], _OUTPUT: []}
    weights: set[str] = set()
    with _reading(path) as (data, graph):
        for number, first, last in messages(data, *graph):
            if number in found:
                found[number].append(_tensor(data, (first, last)))
            elif number == _INITIALIZER:
                weights.add(_text(data, (first, last), _TENSOR_NAME))
    # Files of before IR version 4 name their weights among the inputs too.
    return tuple(spec for spec in found[_INPUT] if spec.name not in weights), tuple(found[_OUTPUT])


def contributed_operators(path: Path) -> set[str]:
    """Names of the operators in a graph that are not of the ONNX standard, by what their makers call them.

    Raises:
        BundleError: the file cannot be read, or is no ONNX graph.
    """
    found: set[str] = set()
    with _reading(path) as (data, graph):
        for number, *node in messages(data, *graph):
            if number != _NODE:
                continue
            texts = {n: data.bytes(*span).decode() for n, *span in messages(data, *node) if n in (_OPERATOR, _DOMAIN)}
            if texts.get(_DOMAIN, "") not in ("", "ai.onnx"):
                found.add(texts[_OPERATOR])
    return found


@contextmanager
def _reading(path: Path) -> Iterator[tuple[Reader, _Span]]:
    """A file and where its graph lies in it; what is wrong with either is said in our words."""
    try:
        with open(path, "rb", buffering=0) as stream:
            data = Reader(stream.fileno())
            yield data, _single(data, (0, os.fstat(stream.fileno()).st_size), _GRAPH)
    except OSError as error:
        raise BundleError(f"`{path.name}` cannot be read: {error.strerror}", "copy the folder again") from None
    except ValueError as error:
        raise BundleError(f"`{path.name}` is not an ONNX graph: {error}", "copy the folder again") from None


def _tensor(data: Reader, span: _Span) -> TensorSpec:
    name = _text(data, span, _NAME)
    kind = _single(data, _single(data, span, _TYPE), _TENSOR_TYPE)
    element = numbers(data, *kind).get(_ELEMENT_TYPE, 0)
    if element not in _DTYPES:
        raise ValueError(f"`{name[:60]}` has the element type {element}, which is not served")
    axes = _axes(data, _single(data, kind, _SHAPE), name)
    return TensorSpec(name, _DTYPES[element], tuple(axes))


def _axes(data: Reader, shape: _Span, name: str) -> Iterator[int | str]:
    for place, (number, first, last) in enumerate(messages(data, *shape)):
        if number != _DIMENSION:
            raise ValueError(f"the shape of `{name[:60]}` has a field that is no axis")
        size = numbers(data, first, last).get(_SIZE, 0)
        yield size or _text(data, (first, last), _AXIS_NAME) or f"{name} axis {place}"


def _single(data: Reader, span: _Span, wanted: int) -> _Span:
    found = [(first, last) for number, first, last in messages(data, *span) if number == wanted]
    if len(found) != 1:
        raise ValueError(f"field {wanted} stands {len(found)} times, expected once")
    return found[0]


def _text(data: Reader, span: _Span, wanted: int) -> str:
    for number, first, last in messages(data, *span):
        if number == wanted:
            if last - first > _LONGEST_NAME:
                raise ValueError("a name is longer than any honest one")
            name = data.bytes(first, last).decode("utf-8")
            if not name.isprintable():  # it will be shown on somebody's terminal
                raise ValueError("a name holds control characters")
            return name
    return ""
