"""Checkpoints of every kind we read, as one thing: named tensors, a configuration, and where they come from.

Nothing is ever unpickled: `.bin`, `.pt`, `.pth` and `.tar` files go through the inert reader of `inert_pickle`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export import hub
from vlrt_export.state_dict import named_tensors, plain_values
from vlrt_export.torch_archive import read_torch_file

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TORCH_NAME = re.compile(r"\.(pt|pth|tar|bin|ckpt|pkl)(-\d+)?$")


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each read from disk when it is asked for.

    Args:
        loaders: name -> function that returns the tensor.
        where: the checkpoint's name for messages.
    """

    def __init__(self, loaders: Mapping[str, Callable[[], Tensor]], where: str) -> None:
        self._loaders = dict(loaders)
        self._where = where

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._loaders:
            raise KeyError(f"`{self._where}` has no tensor `{name}`")
        return self._loaders[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._loaders

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)


@dataclass(frozen=True)
class Checkpoint:
    """One opened checkpoint.

    Args:
        tensors: name -> tensor, read lazily; as stored (fp16 stays fp16).
        config: the folder's ``config.json``; empty where there is none.
        folder: the folder that holds the checkpoint's other files; `None` for a single file.
        files: the weight files.
        origin: hub id, or the file's or folder's name; never a machine's path.
        commit: the hub's commit; empty for local files.
        layout: ``safetensors``, ``state-dict`` or ``torchscript``.
        values: plain values beside the weights in a torch file, e.g. ``epoch``.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    folder: Path | None
    files: tuple[Path, ...]
    origin: str
    commit: str = ""
    layout: str = "safetensors"
    values: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def revision(self) -> str:
        """The hub's commit, or ``sha256:`` and the digest of the weight file (of the files' digests if several)."""
        if self.commit:
            return self.commit
        digests = [_sha256(path) for path in self.files]
        joined = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return f"sha256:{joined}"

    def file(self, name: str) -> Path | None:
        """The file of that plain name in the checkpoint's folder, or `None`."""
        path = self.folder / name if self.folder else None
        return path if path and path.is_file() else None

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in the file of that name, empty where the checkpoint has no such file."""
        path = self.file(name)
        return read_json(path) if path else {}


def open_checkpoint(
    source: str | Path, *, weights: str = "", revision: str = "", patterns: Iterable[str] = ()
) -> Checkpoint:
    """Opens a checkpoint without executing anything from it.

    Args:
        source: a folder (transformers layout, or any with one weight file), a ``.safetensors`` file, a torch
            file (state dict, whole modules, TorchScript archive), or a hub id (``owner/name[@revision]``).
        weights: plain name of the weight file, or of the index of its parts, where a folder has several.
        revision: the hub's branch, tag or commit.
        patterns: names of further files wanted from the hub, beside weights, configuration and tokenizer.

    Raises:
        VlrtError: no such file or folder, no or several weight files, a damaged file, or the hub cannot be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _open_folder(path, path.resolve().name, weights)
    if path.is_file():
        return _open_files((path,), {}, None, path.name)
    if not hub.is_hub_id(str(source)):
        raise VlrtError(f"`{source}` does not exist", "give a folder, a weight file, or a hub id such as `owner/name`")
    snapshot = hub.fetch(str(source), revision, tuple(patterns))
    return _open_folder(snapshot.folder, snapshot.name, weights, snapshot.commit)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        VlrtError: the file is not one.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise VlrtError(f"`{path.name}` is not JSON: {error}", "download the file again") from error
    if not isinstance(value, dict):
        raise VlrtError(f"`{path.name}` holds a {type(value).__name__}, expected a JSON object")
    return value


def _open_folder(folder: Path, origin: str, weights: str, commit: str = "") -> Checkpoint:
    config_file = folder / "config.json"
    config = read_json(config_file) if config_file.is_file() else {}
    return _open_files(_weight_files(folder, weights), config, folder, origin, commit)


def _weight_files(folder: Path, weights: str) -> tuple[Path, ...]:
    if weights.endswith(".index.json"):
        return _shards(folder, weights)
    if weights:
        return (_inside(folder, weights),)
    for name in (*SINGLE_FILES[:1], *INDEX_FILES[:1], *SINGLE_FILES[1:], *INDEX_FILES[1:]):
        if (folder / name).is_file():
            return _shards(folder, name) if name in INDEX_FILES else (folder / name,)
    candidates = sorted(path for path in folder.iterdir() if path.is_file() and _is_weight_file(path))
    safe = [path for path in candidates if path.suffix == ".safetensors"]
    chosen = safe or candidates
    if not chosen:
        raise VlrtError(
            f"`{folder.name}` holds no weights", f"expected {SINGLE_FILES[0]}, {SINGLE_FILES[1]} or one weight file"
        )
    if len(chosen) > 1:
        names = ", ".join(f"`{path.name}`" for path in chosen[:6])
        raise VlrtError(f"`{folder.name}` holds several weight files: {names}", "give the one meant as the source")
    return (chosen[0],)


def _shards(folder: Path, index: str) -> tuple[Path, ...]:
    mapping = read_json(folder / index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise VlrtError(f"`{index}` lacks a weight_map", "download the checkpoint again")
    return tuple(_inside(folder, name) for name in sorted(set(mapping.values())))


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise VlrtError(f"`{name}` is not a plain file name", "weight files lie directly in the checkpoint's folder")
    if not (folder / name).is_file():
        raise VlrtError(f"`{folder.name}` lacks `{name}`", "download the checkpoint again")
    return folder / name


def _is_weight_file(path: Path) -> bool:
    return path.suffix == ".safetensors" or bool(_TORCH_NAME.search(path.name))


def _open_files(
    files: tuple[Path, ...], config: Mapping[str, Any], folder: Path | None, origin: str, commit: str = ""
) -> Checkpoint:
    loaders: dict[str, Callable[[], Tensor]] = {}
    values: dict[str, Any] = {}
    layout = "safetensors"
    for path in files:
        if path.suffix == ".safetensors":
            loaders.update(_safetensors(path))
            continue
        torch_file = read_torch_file(path)
        layout = "torchscript" if torch_file.scripted else "state-dict"
        loaders.update({name: _constant(tensor) for name, tensor in named_tensors(torch_file).items()})
        values.update(plain_values(torch_file))
    return Checkpoint(LazyTensors(loaders, origin), config, folder, files, origin, commit, layout, values)


def _constant(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def _safetensors(path: Path) -> dict[str, Callable[[], Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        handle: Any = safe_open(str(path), framework="pt")
        names = list(handle.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise VlrtError(f"`{path.name}` is damaged: {error}", "download or copy the file again") from error

    return {name: _safetensor(path, name) for name in names}


def _safetensor(path: Path, name: str) -> Callable[[], Tensor]:
    def load() -> Tensor:
        from safetensors import safe_open

        # Opened anew each time: one handle would keep every page that was ever read, a second copy of the weights.
        with safe_open(str(path), framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
            return tensor

    return load


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
