"""`models.yaml`: the models we know by name, where their bundles lie, and each task's default."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from vlrt import record
from vlrt.bundle import MANIFEST, Bundle
from vlrt.errors import BundleError
from vlrt.folders import cache_folder, home
from vlrt.foreign import recognises
from vlrt.whole_file import write_whole

__all__ = [
    "SHIPPED",
    "Entry",
    "Zoo",
    "cache_folder",
    "entry",
    "exported",
    "find",
    "home",
    "locate",
    "resolve",
    "zoo",
]

SHIPPED = "bundles"
"""Folder inside the package with the bundles that come with the wheel."""


@dataclass(frozen=True)
class Entry:
    """One model of the zoo.

    Args:
        family: name of the exporter's family; its file in `vlrt_export.families` has that name.
        tasks: what its bundle serves.
        source: default checkpoint: a hub id; empty where the user must give one.
        license: of that checkpoint.
        summary: one line for `vlrt models`.
        tolerances: limits of the parity ladder by rung.
        options: values the family understands (sizes, encoder, …).
        shipped: whether the bundle comes with the wheel.
    """

    family: str
    tasks: tuple[str, ...]
    summary: str
    source: str = ""
    license: str = ""
    precisions: tuple[str, ...] = ("fp32",)
    tolerances: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    shipped: bool = False


@dataclass(frozen=True)
class Zoo:
    """All entries by name, the default model of each task, and the limits of the gate for reduced precision."""

    defaults: dict[str, str]
    models: dict[str, Entry]
    gate: dict[str, float] = field(default_factory=dict)


@cache
def zoo() -> Zoo:
    """Reads `models.yaml` of the installed package, or of the source tree."""
    here = Path(__file__).resolve()
    inside, source = here.parent / "models.yaml", here.parents[2] / "models.yaml"
    return record.read(Zoo, _parsed(inside.read_bytes() if inside.is_file() else source.read_bytes()), "models.yaml")


def _parsed(content: bytes) -> Any:
    """What YAML says, kept as JSON under the content's digest: importing a YAML reader takes longer than all else."""
    kept = cache_folder() / "zoo" / f"{hashlib.sha256(content).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(kept.read_bytes())
    import yaml

    value = yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason not to run
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(value).encode())
    return value


def entry(name: str) -> Entry:
    """The entry of that name.

    Raises:
        BundleError: unknown; the nearest names are given.
    """
    found = zoo().models.get(name)
    if found is None:
        raise _unknown(name)
    return found


def locate(name: str) -> Path | None:
    """Folder of the bundle called `name`: one the user exported, else one that came with the wheel."""
    for folder in (home() / name, Path(__file__).parent / SHIPPED / name):
        if (folder / MANIFEST).is_file():
            return folder
    return None


def find(model: str | os.PathLike[str]) -> Path:
    """The folder meant by a bundle's path or name.

    Raises:
        BundleError: no such bundle; says how to export it, or gives the nearest names.
    """
    name = os.fspath(model)
    folder = Path(name) if _looks_like_path(name) else locate(name)
    if folder is None:
        raise _not_exported(name) if name in zoo().models else _unknown(name)
    return folder


def resolve(model: str | os.PathLike[str] | None, task: str) -> Bundle:
    """Opens the bundle to use for `task`.

    Args:
        model: a bundle's folder, a name, or `None` for the task's default.

    Raises:
        BundleError: unknown, not exported yet, damaged, or not serving the task.
    """
    if model is None:
        model = zoo().defaults.get(task)
    if model is None:
        raise BundleError(f"no default model serves `{task}`", "choose one with `--model`; `vlrt models` lists them")
    bundle = Bundle.open(find(model))
    bundle.require(task)
    return bundle


def _looks_like_path(name: str) -> bool:
    folder = Path(name)
    return os.sep in name or name.startswith(".") or (folder / MANIFEST).is_file() or recognises(folder)


def _not_exported(name: str) -> BundleError:
    need = "" if zoo().models[name].source else " --source CHECKPOINT"
    return BundleError(f"the model `{name}` is not exported yet", f"vlrt export {name}{need}")


def _unknown(name: str) -> BundleError:
    import difflib

    names = sorted({*zoo().models, *exported()})
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = "did you mean " + " or ".join(f"`{n}`" for n in near) + "?" if near else "`vlrt models` lists them"
    return BundleError(f"no model or bundle is called `{name}`", hint)


def exported() -> list[str]:
    """Names of the bundles in the user's folder."""
    folder = home()
    return sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file()) if folder.is_dir() else []
