"""Opening a bundle: the one place that touches its paths."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vlrt import foreign, manifest
from vlrt.digests import AGAIN, remembered_sha256, sha256
from vlrt.errors import BundleError, VlrtError
from vlrt.manifest import GraphSpec, Manifest, UnverifiedFile
from vlrt.onnx_files import external_files

__all__ = ["MANIFEST", "Bundle", "sha256"]

MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 16 << 20


class Bundle:
    """A bundle's folder and its manifest; a file is checked against the manifest before its path is given out.

    Use `Bundle.open`. Names are plain, links are refused, size and SHA-256 are compared on first use; digests of large
    files are remembered between processes (`vlrt.digests`), except by `problems`, which reads every byte.

    Args:
        path: the folder.
        description: its manifest.
        places: paths of files that do not lie directly in the folder, as in exports of others.
    """

    def __init__(self, path: Path, description: Manifest, places: Mapping[str, Path] | None = None) -> None:
        self.path = path
        self.manifest = description
        self._places = dict(places or {})
        self._verified: set[str] = set()
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Reads the manifest and sees that every file is there with the right size.

        A folder that Optimum or transformers.js exported has no manifest; one is derived (see `vlrt.foreign`).

        Raises:
            BundleError: not a bundle, an unknown schema, a missing, linked or truncated file.
        """
        folder = Path(path)
        if not os.path.lexists(folder / MANIFEST) and foreign.recognises(folder):
            return cls(folder, *foreign.describe(folder))
        text = _read_manifest(folder)
        bundle = cls(folder, manifest.parse(text, f"{folder.name}/{MANIFEST}"))
        for name in bundle.manifest.files:
            bundle._check_size(name)
        return bundle

    @property
    def name(self) -> str:
        return self.manifest.name

    def file(self, name: str) -> Path:
        """Path of a file of the bundle, its content verified (once per opened bundle).

        Raises:
            BundleError: not a file of the bundle, or its content is not what was exported.
        """
        if name not in self.manifest.files:
            raise BundleError(f"`{name}` is not a file of the bundle `{self.name}`")
        with self._lock:
            known = name in self._verified
        if not known:
            self._check_content(name, remembered_sha256)
            with self._lock:
                self._verified.add(name)
        return self._path(name)

    def digest(self, name: str) -> str:
        """SHA-256 of a file's content: the manifest's, or of a file that it cannot know, computed once."""
        entry = self.manifest.files[name]
        if not isinstance(entry, UnverifiedFile):
            return entry.sha256
        with self._lock:
            if name not in self._digests:
                self._digests[name] = remembered_sha256(self._path(name))
            return self._digests[name]

    @property
    def identity(self) -> str:
        """What tells this bundle from every other one and from itself exported again, as hexadecimal digits."""
        if not self.is_foreign:
            return sha256(self.path / MANIFEST)
        contents = [manifest.dump(self.manifest), *map(self.digest, sorted(self.manifest.files))]
        return hashlib.sha256("\n".join(contents).encode()).hexdigest()

    @property
    def is_foreign(self) -> bool:
        """Whether others exported it, so that nothing says what its files should hold."""
        return any(isinstance(entry, UnverifiedFile) for entry in self.manifest.files.values())

    def graph(self, role: str) -> tuple[GraphSpec, Path]:
        """Signature and verified path of a graph, its external data verified too.

        Raises:
            BundleError: no such graph, a damaged file, or one that would read files which the manifest does not name.
        """
        spec = self.manifest.graphs.get(role)
        if spec is None:
            have = ", ".join(f"`{r}`" for r in self.manifest.graphs)
            raise BundleError(f"the bundle `{self.name}` has no graph `{role}`, it has {have or 'none'}")
        path = self.file(spec.file)
        for name in sorted(external_files(path) - set(spec.external)):
            what = f"`{spec.file}` would read `{name[:100]}`, which the manifest does not name as its external data"
            raise BundleError(what, "do not trust this bundle")
        for name in spec.external:
            self.file(name)
        return spec, path

    def require(self, task: str) -> None:
        """Raises `BundleError` unless the bundle serves `task`."""
        if task not in self.manifest.tasks:
            serves = ", ".join(f"`{t}`" for t in self.manifest.tasks) or "nothing"
            raise BundleError(
                f"the bundle `{self.name}` does not serve `{task}`, it serves {serves}",
                "choose another with `--model`; `vlrt models` lists them",
            )

    def problems(self) -> Iterator[VlrtError]:
        """Every file whose content is not what the manifest says, and every file it does not know."""
        for name in self.manifest.files:
            try:
                self._check_size(name)
                self._check_content(name, sha256)
            except BundleError as error:
                yield error
        if self.is_foreign:
            return
        for path in sorted(self.path.iterdir()):
            if path.name != MANIFEST and path.name not in self.manifest.files:
                yield BundleError(f"`{path.name}` is not named by the manifest", "remove it")

    @property
    def size(self) -> int:
        """Bytes of all files, the manifest not counted."""
        return sum(entry.bytes for entry in self.manifest.files.values())

    def _path(self, name: str) -> Path:
        return self._places.get(name, self.path / name)

    def _check_size(self, name: str) -> None:
        path, entry = self._path(name), self.manifest.files[name]
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            raise BundleError(f"`{name}` is missing from the bundle `{self.path.name}`", AGAIN) from None
        except OSError as error:
            raise BundleError(f"`{name}` cannot be read: {error.strerror}", AGAIN) from None
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"`{name}` is not a regular file", "a bundle holds no links; copy the file itself")
        if found.st_size != entry.bytes:
            raise BundleError(f"`{name}` has {found.st_size:,} bytes, expected {entry.bytes:,}", AGAIN)

    def _check_content(self, name: str, digest: Callable[[Path], str]) -> None:
        if isinstance(self.manifest.files[name], UnverifiedFile):
            return
        found, expected = digest(self._path(name)), self.manifest.files[name].sha256
        if found != expected:
            what = f"`{name}` was altered: its sha256 is {found[:12]}…, the manifest says {expected[:12]}…"
            raise BundleError(what, AGAIN)


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST
    try:
        if not folder.is_dir():
            raise BundleError(f"`{folder}` is not a folder", "give a bundle's folder or a name from `vlrt models`")
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode):
            raise BundleError(f"`{path}` is not a regular file", "a bundle holds no links; copy the file itself")
        if found.st_size > _LARGEST_MANIFEST:
            what = f"`{path}` has {found.st_size:,} bytes, too many for a manifest"
            raise BundleError(what, f"at most {_LARGEST_MANIFEST:,} are read; copy the bundle again")
        return path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"`{folder}` is not a bundle: it has no {MANIFEST}", "write one with `vlrt export`") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"`{path}` cannot be read: {reason}", "check its name and permissions") from None
