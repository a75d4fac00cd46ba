"""Named tensors out of a torch file's inert data: state dicts, dictionaries of them, and whole pickled modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export.inert_pickle import Record
from vlrt_export.torch_archive import TorchFile, kind_of

_DEEPEST = 64
_MOST_VALUES = 1_000_000
_WRAPPING_KEYS = ("state_dict", "model_state_dict", "model")
_PARALLEL = {"DataParallel", "DistributedDataParallel"}
_PLAIN_DEPTH, _MOST_PARTS = 4, 1000
_PLAIN = (str, int, float, bool, type(None))


def named_tensors(file: TorchFile) -> dict[str, Tensor]:
    """All tensors of a torch file by dotted name; a pickled module's names are those of its own ``state_dict()``.

    A dictionary that carries its weights under ``state_dict``, ``model_state_dict`` or ``model`` is opened there,
    and the prefix that data-parallel training leaves is dropped.

    Raises:
        VlrtError: the file holds no tensors under names, or is nested without end.
    """
    value = _unwrapped(file)
    found = dict(_walk(file, value))
    if not found:
        raise VlrtError(
            f"`{file.path.name}` holds no named tensors", "save a state dict: torch.save(model.state_dict(), FILE)"
        )
    if all(name.startswith("module.") for name in found):
        return {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def plain_values(file: TorchFile) -> dict[str, Any]:
    """Text, numbers, and lists and dictionaries of them beside the weights in the outermost dictionary: ``epoch``, …"""
    if not isinstance(file.value, dict):
        return {}
    return {key: item for key, item in file.value.items() if isinstance(key, str) and _is_plain(item, _PLAIN_DEPTH)}


def _is_plain(item: Any, depth: int) -> bool:
    if isinstance(item, (dict, list, tuple)) and depth:
        parts = [*item, *item.values()] if isinstance(item, dict) else item
        return len(parts) <= _MOST_PARTS and all(_is_plain(part, depth - 1) for part in parts)
    return isinstance(item, _PLAIN)


def _unwrapped(file: TorchFile) -> Any:
    value = file.value
    for _ in range(4):
        inner = [value[key] for key in _WRAPPING_KEYS if key in value] if isinstance(value, dict) else []
        inner = [item for item in inner if isinstance(item, (dict, Record)) and file.tensor(item) is None]
        if not inner:
            break
        value = inner[0]
    return value


def _walk(file: TorchFile, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors depth first; limits hold against values that contain themselves, or each other many times."""
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    for _ in range(_MOST_VALUES):
        if not stack:
            return
        name, item, depth = stack.pop()
        if depth > _DEEPEST:
            break
        tensor = file.tensor(item)
        if tensor is not None:
            yield name, tensor
            continue
        named = [(key, child) for key, child in _children(item).items() if isinstance(key, str)]
        stack += [(f"{name}.{key}" if name else key, child, depth + 1) for key, child in reversed(named)]
    limits = f"more than {_DEEPEST} deep or into more than {_MOST_VALUES:,} values"
    raise VlrtError(f"`{file.path.name}` is nested {limits}", "save a state dict: torch.save(model.state_dict(), FILE)")


def _children(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    kind = kind_of(value)
    if kind is None:
        return {}
    if not isinstance(value.state, dict):
        return dict(value.entries)
    if kind.module.startswith("__torch__"):
        return {key: item for key, item in value.state.items() if isinstance(item, Record)}
    return _module_children(value)


def _module_children(module: Record) -> dict[Any, Any]:
    """Parameters, buffers and submodules in a pickled `nn.Module`'s ``__dict__``; anything else is no module."""
    state = module.state
    parts = {key: _mapping(state.get(key)) for key in ("_parameters", "_buffers", "_modules")}
    kind = kind_of(module)
    if kind and kind.name in _PARALLEL:
        inner = parts["_modules"].get("module")
        if isinstance(inner, Record) and isinstance(inner.state, dict):
            return _module_children(inner)
    transient = state.get("_non_persistent_buffers_set")
    if isinstance(transient, set):
        parts["_buffers"] = {key: item for key, item in parts["_buffers"].items() if key not in transient}
    return {key: item for part in parts.values() for key, item in part.items()}


def _mapping(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
