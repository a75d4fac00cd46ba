"""Weights of a large graph in a file beside it: written tensor by tensor, and mapped back in the modules' place."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import external_data_helper, numpy_helper
from torch import nn

from vlrt_export.precision import cast_back, exact_halves

INLINE = 1024
"""Bytes below which a tensor stays in the graph's own file."""

_PAGE = 4096
"""Tensors begin on a page, so that an engine may map each."""


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, shared ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


class MappedWeights:
    """The fp32 weights of a module in a file; pages are read when they are used and may be dropped at any time.

    Args:
        path: the file; it may be unlinked once it is mapped.
        places: name of a parameter -> its offset in bytes.
    """

    def __init__(self, path: Path, places: dict[str, int]) -> None:
        self._bytes: Any = np.memmap(path, np.uint8, "c")
        self._places = places

    def replace(self, module: nn.Module) -> None:
        """Puts the mapped weights in the place of the module's own, whose memory is given back."""
        for name, parameter in module.named_parameters(remove_duplicate=False):
            offset = self._places.get(name)
            if offset is None or parameter.dtype != torch.float32:
                continue
            raw = self._bytes[offset : offset + 4 * parameter.numel()]
            parameter.data = torch.from_numpy(raw.view(np.float32)).reshape(parameter.shape)

    def drop(self) -> None:
        """Gives back the memory of all pages; they are read again when they are used."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._bytes._mmap.madvise(mmap.MADV_DONTNEED)


def move_weights(model: onnx.ModelProto, source: Path, target: Path) -> bool:
    """Writes a model's external weights to another file, one tensor in memory at a time, halved where fp16 is exact.

    Args:
        model: its initializers refer to files in the folder `source`, and to `target` afterwards.
        target: the new file; it will lie beside the graph.

    Returns:
        Whether anything was halved.
    """
    casts = []
    with target.open("wb") as stream:
        for tensor in model.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            values = read_tensor(tensor, source)
            if values.nbytes < INLINE:
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
                continue
            halves = exact_halves(values)
            if halves is not None:
                casts.append(cast_back(tensor.name))
                tensor.name, tensor.data_type, values = casts[-1].input[0], onnx.TensorProto.FLOAT16, halves
            append_tensor(stream, tensor, values, target.name)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    return bool(casts)


def places(model: onnx.ModelProto) -> dict[str, int]:
    """Offsets of a model's external fp32 tensors by name."""
    found = (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    return dict(_offsets(found))


def _offsets(tensors: Iterator[onnx.TensorProto]) -> Iterator[tuple[str, int]]:
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor.name, external_data_helper.ExternalDataInfo(tensor).offset or 0


def read_tensor(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """Values of an external tensor, from the file in `folder`."""
    info = external_data_helper.ExternalDataInfo(tensor)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    values = np.fromfile(folder / info.location, dtype, math.prod(tensor.dims), offset=info.offset or 0)
    return values.reshape(tuple(tensor.dims))


def append_tensor(stream: BinaryIO, tensor: onnx.TensorProto, values: NDArray[Any], name: str) -> None:
    """Writes values at the end of a file called `name`, on a page of their own, and makes the tensor refer to them."""
    stream.write(bytes(-stream.tell() % _PAGE))
    offset = stream.tell()
    values.tofile(stream)
    # The helper refuses tensors without data of their own, which these never have in memory.
    tensor.raw_data = b" "
    external_data_helper.set_external_data(tensor, name, offset, values.nbytes)
    tensor.ClearField("raw_data")
