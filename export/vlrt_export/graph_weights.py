"""The constants of a written graph: read one at a time, replaced, and saved again, whatever their size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vlrt_export.external_data import INLINE, append_tensor, read_tensor

MICROSOFT = "com.microsoft"


class GraphWeights:
    """A graph whose weights stay on the disk until one is read; new ones go to the new graph's file at once.

    Args:
        source: the written graph.
        target: where the changed graph goes; its external data, where the source has such, beside it as ``STEM.bin``.
            `None` to read only.
    """

    def __init__(self, source: Path, target: Path | None = None) -> None:
        self.model = onnx.load(source, load_external_data=False)
        self._source, self._target = source, target
        self._tensors = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self._casts = {
            n.output[0]: n.input[0] for n in self.nodes if n.op_type == "Cast" and n.input[0] in self._tensors
        }
        self._new: dict[str, onnx.TensorProto] = {}
        self._stream: BinaryIO | None = None
        if target is not None and any(map(_is_external, self._tensors.values())):
            self._stream = target.with_suffix(".bin").open("wb")

    @property
    def nodes(self) -> Any:
        return self.model.graph.node

    def is_constant(self, name: str) -> bool:
        """Whether a name is a weight, or the fp32 form of one that is stored as fp16."""
        return self._casts.get(name, name) in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[self._casts.get(name, name)].dims)

    def size(self, name: str) -> int:
        """Elements of a weight."""
        return math.prod(self.shape(name))

    def is_float(self, name: str) -> bool:
        kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        return self._tensors[self._casts.get(name, name)].data_type in kinds

    def stored_floats(self) -> list[str]:
        """Names of the weights that are stored as fp32."""
        return [name for name, tensor in self._tensors.items() if tensor.data_type == onnx.TensorProto.FLOAT]

    def read(self, name: str) -> NDArray[Any]:
        """A weight's values; fp32 where it is floating."""
        tensor = self._tensors[self._casts.get(name, name)]
        external = _is_external(tensor)
        values = read_tensor(tensor, self._source.parent) if external else numpy_helper.to_array(tensor)
        return values.astype("float32", copy=False) if self.is_float(name) else values

    def add(self, name: str, values: NDArray[Any]) -> str:
        """Adds a weight once; large ones of a graph with external data are written at once, not kept."""
        if name not in self._new:
            if self._stream is not None and values.nbytes >= INLINE:
                tensor = onnx.TensorProto(name=name, dims=values.shape)
                tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
                append_tensor(self._stream, tensor, values, self._bin)
            else:
                tensor = numpy_helper.from_array(values, name)
            self._new[name] = tensor
        return name

    def is_new(self, name: str) -> bool:
        """Whether `add` made that weight."""
        return name in self._new

    def replace_nodes(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Puts `nodes`, in an order that computes them, in the place of all nodes."""
        kept = list(nodes)
        del self.nodes[:]
        self.nodes.extend(kept)

    def save(self) -> tuple[str, ...]:
        """Writes the graph with what its nodes still use; returns the names of its external files."""
        if self._target is None:
            raise ValueError("the graph was opened to be read")
        self._drop_unused()
        used = {name for node in self.nodes for name in node.input}
        used |= {info.name for info in self.model.graph.output}
        made = {name for node in self.nodes for name in node.output}
        kept = [tensor for name, tensor in self._tensors.items() if name in used - made]
        for tensor in filter(_is_external, kept):
            if self._stream is None:
                raise ValueError("external data has nowhere to go")
            append_tensor(self._stream, tensor, read_tensor(tensor, self._source.parent), self._bin)
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend([*kept, *(t for t in self._new.values() if t.name in used)])
        self._need_domain()
        onnx.save_model(self.model, self._target)
        if self._stream is None:
            return ()
        self._stream.close()
        return (self._bin,)

    @property
    def changed(self) -> bool:
        """Whether anything was added."""
        return bool(self._new)

    @property
    def _bin(self) -> str:
        return "" if self._target is None else self._target.with_suffix(".bin").name

    def _drop_unused(self) -> None:
        wanted = {info.name for info in self.model.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                wanted |= set(node.input)
                kept.append(node)
        self.replace_nodes(reversed(kept))

    def _need_domain(self) -> None:
        domains = {opset.domain for opset in self.model.opset_import}
        if MICROSOFT not in domains and any(node.domain == MICROSOFT for node in self.nodes):
            self.model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)
