"""Prepared graphs of this machine, kept between processes: what was made of a graph once need not be made again.

A hit is read in place of the bundle's own file, whose hash is part of the key; that file is not read then, so that
whatever became of it cannot run (`vlrt verify` reads it). Writers work in a folder of their own and rename it, so
processes may meet; an entry that is damaged is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from vlrt.bundle import Bundle
from vlrt.digests import remembered_sha256, sha256
from vlrt.errors import VlrtError, VlrtWarning
from vlrt.manifest import GraphSpec
from vlrt.protobuf import Reader, messages
from vlrt.zoo import cache_folder

GRAPH, WEIGHTS = "graph.onnx", "graph.bin"
REWRITTEN, REWRITTEN_WEIGHTS = "rewritten.onnx", "rewritten.bin"
"""As onnxruntime optimised it, or as that was rewritten for kernels of our own."""

_RECORD = "record.json"
_MANY_NODES = 1000
"""From here on the engine takes longer to rewrite a graph than to read what it wrote."""

_LARGE_HALVES = 64 << 20
"""Bytes of weights stored as fp16, which the engine widens at every load, from which that is so too."""

_MUCH = 32 << 20
"""Bytes of a graph from which rewriting it pays."""

_MOST_BYTES = 16 << 30
_GRAPH_FIELD, _NODE_FIELD = 7, 1


class GraphCache:
    """The cached form of one graph of a bundle.

    Args:
        bundle: that holds it.
        spec: the graph.
        engine: what decides the form beside graph and processor: version of onnxruntime, provider, its options.
        kernels: what of that is of our own kernels; the empty text where they do not run.
    """

    def __init__(self, bundle: Bundle, spec: GraphSpec, engine: str, kernels: str = "") -> None:
        self._name = spec.file
        digests = [bundle.digest(name) for name in (spec.file, *spec.external)]
        self._kind = "kernels" if kernels else "plain"
        self._all = cache_folder() / "graphs" / _digest(*digests)
        self._entry = self._all / f"{self._kind}-{_digest(engine, kernels, processor())}"

    def find(self) -> Path | None:
        """The cached graph, every byte of it checked; `None` where there is none for this machine."""
        if not self._entry.is_dir():
            if any(self._all.glob(f"{self._kind}-*")):
                self._say("is from another processor, onnxruntime or vlrt")
            return None
        try:
            record = json.loads((self._entry / _RECORD).read_text("utf-8"))
            whole = all(remembered_sha256(self._entry / name) == expected for name, expected in record.items())
        except (OSError, ValueError, AttributeError, VlrtError):
            whole = False
        if whole and self.made() is not None:
            os.utime(self._entry)
            return self.made()
        self._say("is damaged")
        shutil.rmtree(self._entry, ignore_errors=True)
        return None

    def made(self) -> Path | None:
        """The cached graph, unchecked: for whoever has just made it; `None` where it could not be kept."""
        return next((self._entry / name for name in (REWRITTEN, GRAPH) if (self._entry / name).is_file()), None)

    @contextlib.contextmanager
    def making(self) -> Iterator[Path | None]:
        """A path to write the graph to, `GRAPH` or beside it `REWRITTEN`, with its weights; kept if nothing is raised.

        `None` where the cache cannot be written, which is no reason not to run.
        """
        try:
            self._all.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".", dir=self._all))
        except OSError:
            yield None
            return
        try:
            yield folder / GRAPH
            self._keep(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, folder: Path) -> None:
        with contextlib.suppress(OSError, VlrtError):
            record = {path.name: sha256(path) for path in sorted(folder.iterdir())}
            (folder / _RECORD).write_text(json.dumps(record), "utf-8")
            # Another process may have been first; the rename fails then, and its entry is as good.
            os.rename(folder, self._entry)
            _prune(self._all.parent, self._entry)

    def _say(self, what: str) -> None:
        warnings.warn(f"the cached form of `{self._name}` {what}; it is made again", VlrtWarning, stacklevel=3)


def is_worth_caching(spec: GraphSpec, path: Path) -> bool:
    """Whether the engine needs long to rewrite a graph: it has many nodes, or much that is stored as fp16."""
    return (spec.storage == "fp16" and stored(spec, path) >= _LARGE_HALVES) or _nodes(path) >= _MANY_NODES


def is_worth_rewriting(spec: GraphSpec, path: Path) -> bool:
    """Whether kernels of our own are worth a copy of a graph's weights; `VLRT_KERNELS=always` says that all are."""
    always = os.environ.get("VLRT_KERNELS") == "always"
    return always or stored(spec, path) >= _MUCH or is_worth_caching(spec, path)


def stored(spec: GraphSpec, path: Path) -> int:
    """Bytes of a graph on disk, its weights included."""
    return sum((path.parent / name).stat().st_size for name in (path.name, *spec.external))


def _nodes(path: Path) -> int:
    with open(path, "rb", buffering=0) as stream:
        data = Reader(stream.fileno())
        graphs = [span for number, *span in messages(data, 0, path.stat().st_size) if number == _GRAPH_FIELD]
        return sum(number == _NODE_FIELD for first, last in graphs for number, _, _ in messages(data, first, last))


@cache
def processor() -> str:
    """What tells the processor's instructions: its architecture and, where the system lists them, its features."""
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        wanted = ("flags", "Features", "model name")
        features = "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
    return "\n".join((platform.system(), platform.machine(), features or platform.processor()))


def multiplies_bytes(features: str) -> bool:
    """Whether a processor adds up products of eight bits without overflow: any but x86 without VNNI."""
    machine = features.split("\n")[1].lower()
    return machine not in ("x86_64", "amd64", "x86", "i686") or "vnni" in features


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _prune(folder: Path, newest: Path) -> None:
    """Removes the entries that were not used for longest, while all of them together are too many."""
    entries = sorted((entry for entry in folder.glob("*/[!.]*") if entry != newest), key=lambda e: -e.stat().st_mtime)
    total = _size(newest)
    for entry in entries:
        total += _size(entry)
        if total > _MOST_BYTES:
            shutil.rmtree(entry, ignore_errors=True)


def _size(entry: Path) -> int:
    return sum(path.stat().st_size for path in entry.iterdir())
