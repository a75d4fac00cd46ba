"""Files of `torch.save` and `torch.jit.save`, read without unpickling: structure as inert data, tensors lazily.

Three containers are understood: the zip archive of torch >= 1.6, the TorchScript archive (same layout, its code is
never looked at) and the older stream of five pickles followed by raw storages. Layouts as written by
`torch.serialization`.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export.inert_pickle import Global, PersistentId, Record, read_pickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _STORAGE_DTYPES.values()}
_REBUILDS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}
_LARGEST_EXPANSION = 1 << 24


@dataclass(frozen=True)
class Storage:
    """Raw numbers of one storage inside a mapped file; `offset` and `nbytes` are checked against the file's size."""

    data: mmap.mmap
    offset: int
    nbytes: int

    def tensor(self, dtype: torch.dtype) -> Tensor:
        """A one-dimensional view of the file, read from disk only where it is touched."""
        count = self.nbytes // dtype.itemsize
        if not count:
            return torch.empty(0, dtype=dtype)
        if self.offset % dtype.itemsize == 0:
            return torch.frombuffer(self.data, dtype=dtype, count=count, offset=self.offset)
        return torch.frombuffer(bytearray(self.data[self.offset : self.offset + self.nbytes]), dtype=dtype, count=count)


@dataclass(frozen=True)
class TorchFile:
    """What a torch file holds: its pickled value as inert data, its storages by key, and whether it is TorchScript."""

    path: Path
    value: Any
    storages: dict[str, Storage]
    scripted: bool

    def tensor(self, value: Any) -> Tensor | None:
        """The tensor that an inert value describes, or `None` where it describes something else.

        Raises:
            VlrtError: it describes a tensor that its storage cannot hold.
        """
        for _ in range(8):
            kind = kind_of(value)
            if kind is None:
                return None
            if kind.module == "torch._utils" and kind.name in _REBUILDS:
                return self._rebuild(value)
            if kind not in _WRAPPERS or not isinstance(value.args, tuple) or not value.args:
                return None
            value = self._unwrapped(value)
        return None

    def _unwrapped(self, value: Record) -> Any:
        if value.kind == _SUBCLASS and len(value.args) >= 3:
            return Record(value.args[0], value.args[2])
        return value.args[0]

    def _rebuild(self, record: Record) -> Tensor:
        try:
            storage, offset, size, stride = record.args[:4]
            key, dtype, numel = _storage_reference(storage)
            if record.kind.name == "_rebuild_tensor_v3":
                dtype = _DTYPES[record.args[6].name]
            flat = self.storages[key].tensor(dtype)
            if numel is not None and record.kind.name != "_rebuild_tensor_v3" and numel > len(flat):
                raise ValueError(f"storage {key} has {len(flat)} elements, expected {numel}")
            _check_view(len(flat), offset, tuple(size), tuple(stride))
            return flat.as_strided(tuple(size), tuple(stride), offset)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError) as error:
            raise _damaged(self.path, f"a tensor cannot be rebuilt ({error})") from error


_SUBCLASS = Global("torch._tensor", "_rebuild_from_type_v2")
_WRAPPERS = (
    _SUBCLASS,
    Global("torch._utils", "_rebuild_parameter"),
    Global("torch._utils", "_rebuild_parameter_with_state"),
    Global("torch.nn.parameter", "Parameter"),
    Global("torch.nn.parameter", "Buffer"),
    Global("torch.autograd.variable", "Variable"),
)


def kind_of(value: Any) -> Global | None:
    """The name of what a record would have called; older files refer to a module's class by a persistent id."""
    kind = value.kind if isinstance(value, Record) else None
    if isinstance(kind, PersistentId) and isinstance(kind.value, tuple) and kind.value[:1] == ("module",):
        kind = kind.value[1] if len(kind.value) > 1 else None
    return kind if isinstance(kind, Global) else None


def read_torch_file(path: Path) -> TorchFile:
    """Reads the structure of a file that `torch.save` or `torch.jit.save` wrote; tensors stay on disk.

    Raises:
        VlrtError: the file is empty, truncated, compressed, or none of the three containers.
    """
    with path.open("rb") as stream:
        data = _mapped(path, stream)
        head = data[:2]
        if head == b"PK":
            return _read_zip(path, data)
        if head[:1] == b"\x80":
            return _read_legacy(path, stream, data)
    raise VlrtError(
        f"`{path.name}` is not a file that torch wrote", "give a .safetensors file, a torch checkpoint or a folder"
    )


def _mapped(path: Path, stream: IO[bytes]) -> mmap.mmap:
    try:
        # A private copy-on-write mapping: torch wants writable memory, the file must never change.
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError as error:
        raise _damaged(path, "it is empty") from error


def _read_zip(path: Path, data: mmap.mmap) -> TorchFile:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
    # NotImplementedError is what zipfile raises for a compression that it does not know.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, UnicodeDecodeError) as error:
        raise _damaged(path, f"its zip directory cannot be read ({error})") from error
    pickles = [name for name in entries if name.count("/") <= 1 and name.endswith("data.pkl")]
    if len(pickles) != 1:
        raise VlrtError(f"`{path.name}` is a zip archive but holds no torch checkpoint", "give the checkpoint itself")
    root = pickles[0].removesuffix("data.pkl")
    located = {name: _located(path, data, info) for name, info in entries.items() if name.startswith(root)}
    order = located.get(root + "byteorder")
    if order and data[order.offset : order.offset + order.nbytes].strip() != b"little":
        raise VlrtError(f"`{path.name}` was written on a big-endian machine", "save it again on a little-endian one")
    pickled = located[pickles[0]]
    if pickled is None:
        raise _damaged(path, "its data.pkl is compressed")
    value = _pickled(path, io.BytesIO(data[pickled.offset : pickled.offset + pickled.nbytes]))
    prefix = root + "data/"
    storages = {name.removeprefix(prefix): spot for name, spot in located.items() if spot and name.startswith(prefix)}
    return TorchFile(path, value, storages, scripted=root + "constants.pkl" in entries)


def _located(path: Path, data: mmap.mmap, info: zipfile.ZipInfo) -> Storage | None:
    """Where a stored entry's bytes lie; `None` for a compressed one (TorchScript compresses its code)."""
    if info.compress_type != zipfile.ZIP_STORED:
        return None
    start = info.header_offset
    if data[start : start + 4] != b"PK\x03\x04" or start + 30 > len(data):
        raise _damaged(path, f"entry `{info.filename}` has no header")
    name_length, extra_length = struct.unpack_from("<HH", data, start + 26)
    offset = start + 30 + name_length + extra_length
    if info.file_size != info.compress_size or offset + info.file_size > len(data):
        raise _damaged(path, f"entry `{info.filename}` reaches beyond the end of the file")
    return Storage(data, offset, info.file_size)


def _read_legacy(path: Path, stream: IO[bytes], data: mmap.mmap) -> TorchFile:
    stream.seek(0)
    first = _pickled(path, stream)
    if first != _LEGACY_MAGIC:
        raise VlrtError(
            f"`{path.name}` is a pickle, but not a torch checkpoint",
            "save its tensors with `safetensors` or `torch.save`",
        )
    protocol, system = _pickled(path, stream), _pickled(path, stream)
    if protocol != _LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _damaged(path, "its header is not that of a torch checkpoint")
    value = _pickled(path, stream)
    keys = _pickled(path, stream)
    sizes = _legacy_sizes(value)
    storages: dict[str, Storage] = {}
    offset = stream.tell()
    for key in keys if isinstance(keys, list) else ():
        if offset + 8 > len(data) or key not in sizes:
            raise _damaged(path, f"storage `{key}` is missing")
        (numel,) = struct.unpack_from("<q", data, offset)
        nbytes = numel * sizes[key].itemsize
        if numel < 0 or offset + 8 + nbytes > len(data):
            raise _damaged(path, f"storage `{key}` reaches beyond the end of the file")
        storages[key] = Storage(data, offset + 8, nbytes)
        offset += 8 + nbytes
    return TorchFile(path, value, storages, scripted=False)


def _legacy_sizes(value: Any) -> dict[str, torch.dtype]:
    """The dtype of every storage that the inert value refers to."""
    found: dict[str, torch.dtype] = {}
    seen: set[int] = set()
    queue = [value]
    while queue:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, PersistentId):
            if isinstance(item.value, tuple) and item.value[:1] == ("storage",):
                key, dtype, _ = _storage_reference(item)
                found[key] = dtype
        elif isinstance(item, Record):
            queue.extend((item.args, item.state, item.items, item.entries))
        elif isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, (list, tuple)):
            queue.extend(item)
    return found


def _storage_reference(value: Any) -> tuple[str, torch.dtype, int | None]:
    """Key, dtype and number of elements of a persistent id ('storage', type, key, location, numel, …)."""
    reference = value.value if isinstance(value, PersistentId) else None
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise VlrtError("the checkpoint refers to data that is no storage", "save the state dict again")
    kind, key, numel = reference[1], reference[2], reference[4]
    if not isinstance(kind, Global) or kind.name not in _STORAGE_DTYPES or not isinstance(key, str):
        raise VlrtError(f"the checkpoint uses the storage type `{kind}`", "save it again as float32")
    if len(reference) > 5 and reference[5] is not None:
        raise VlrtError("the checkpoint has storages that are views of others", "save it again with torch >= 1.6")
    return key, _STORAGE_DTYPES[kind.name], numel if isinstance(numel, int) else None


def _check_view(numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 64 or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"size {size}, stride {stride} and offset {offset} do not describe a tensor")
    elements = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if elements else offset - 1
    if last >= numel or elements > max(numel, _LARGEST_EXPANSION):
        raise ValueError(f"size {size} at offset {offset} does not fit a storage of {numel} elements")


def _pickled(path: Path, stream: IO[bytes]) -> Any:
    try:
        return read_pickle(stream)
    except VlrtError as error:
        raise VlrtError(f"`{path.name}`: {error.what}", error.hint) from error


def _damaged(path: Path, why: str) -> VlrtError:
    return VlrtError(f"`{path.name}` is damaged: {why}", "download or copy the file again")
