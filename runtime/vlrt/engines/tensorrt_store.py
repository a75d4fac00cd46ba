"""TensorRT engines of this machine, kept in the user's cache: built once by `vlrt export --target tensorrt`.

An engine serves one GPU, one version of TensorRT, one graph and the shapes it was built for, and it holds code. So none
travels in a bundle, and none is loaded that this user did not build.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlrt.bundle import Bundle, sha256
from vlrt.errors import BundleError, EngineError, UsageError, VlrtError
from vlrt.whole_file import write_whole
from vlrt.zoo import cache_folder

PLAN, RECORD, TIMING = "engine.plan", "record.json", "timing"


@dataclass(frozen=True)
class Machine:
    """What an engine is tied to: the GPU's name, its compute capability, and TensorRT's version."""

    gpu: str
    capability: str
    tensorrt: str

    def __str__(self) -> str:
        return f"{self.gpu} ({self.capability}) with TensorRT {self.tensorrt}"


@dataclass(frozen=True)
class AxisRange:
    """Sizes of a named axis that an engine takes; it is fastest at the usual one."""

    smallest: int
    usual: int
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.usual <= self.largest:
            what = f"the range {self.smallest}:{self.usual}:{self.largest} is not in order, or begins below 1"
            raise UsageError(what, "smallest:usual:largest, for example `rows=1:5:8`")


Profile = Mapping[str, AxisRange]
"""Ranges by the name of the axis."""


class EngineStore:
    """The engines of one graph of a bundle."""

    def __init__(self, bundle: Bundle, role: str) -> None:
        spec = bundle.manifest.graphs.get(role)
        if spec is None:
            raise BundleError(f"`{bundle.name}` has no graph `{role}`", "export it again")
        self._file = spec.file
        self._build = f"vlrt export {bundle.name} --source {bundle.path} --target tensorrt"
        self._all = _root() / _digest([bundle.digest(name) for name in (spec.file, *spec.external)])

    def find(self, machine: Machine) -> bytes:
        """The newest engine for a machine, every byte of it checked.

        Raises:
            EngineError: there is none; whether one was built for another machine or is damaged is said.
        """
        others: list[str] = []
        for entry, record in self._records():
            if record.get("machine") != asdict(machine):
                others.append(_name(record))
            elif _sound(entry, record):
                return (entry / PLAN).read_bytes()
            else:
                raise EngineError(f"the TensorRT engine of `{self._file}` is damaged", self._build)
        built = f", only for {', '.join(sorted(set(others)))}" if others else ""
        raise EngineError(f"`{self._file}` has no TensorRT engine for {machine}{built}", self._build)

    def keep(self, machine: Machine, profiles: Sequence[Profile], plan: bytes) -> Path:
        """Stores an engine in the place of an older one for the same shapes.

        Raises:
            VlrtError: the cache cannot be written.
        """
        described = {
            "machine": asdict(machine),
            "profiles": [{axis: asdict(size) for axis, size in profile.items()} for profile in profiles],
        }
        entry = self._all / _digest([json.dumps(described, sort_keys=True)])
        record = described | {"sha256": hashlib.sha256(plan).hexdigest()}
        try:
            entry.mkdir(parents=True, exist_ok=True)
            write_whole(entry / PLAN, plan)
            write_whole(entry / RECORD, json.dumps(record).encode())
        except OSError as error:
            raise VlrtError(f"`{entry}` cannot be written: {error.strerror}", "set VLRT_CACHE to a folder") from None
        return entry / PLAN

    def _records(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        paths = sorted(self._all.glob(f"*/{RECORD}"), key=lambda path: -os.stat(path).st_mtime_ns)
        for path in paths:
            try:
                record = json.loads(path.read_text("utf-8"))
            except (OSError, ValueError):
                record = None
            if isinstance(record, dict):
                yield path.parent, record


def timing_file(machine: Machine) -> Path:
    """Where the builder's measurements of a machine's kernels are kept, which make the next build short."""
    return _root() / f"{TIMING}-{_digest([str(machine)])}"


def _root() -> Path:
    return cache_folder() / "tensorrt"


def _sound(entry: Path, record: Mapping[str, Any]) -> bool:
    try:
        return sha256(entry / PLAN) == record.get("sha256")
    except (OSError, VlrtError):
        return False


def _name(record: Mapping[str, Any]) -> str:
    try:
        return str(Machine(**record["machine"]))
    except (KeyError, TypeError):
        return "another machine"


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
