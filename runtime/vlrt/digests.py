"""SHA-256 of files, computed again only where a file has changed.

Hashing a gigabyte takes longer than starting a model, so digests of large files are remembered together with what the
file system says of the file: device, inode, size, and when content and attributes were last changed. Any write, also
one that sets the old time of change back, leaves another time of the attributes behind, which a program cannot choose
(Windows has no such time: there, who sets the time of change back is not noticed). Not caught either: a medium that
returns other bytes than were written, and whoever writes to the disk below its file system or into the user's own
cache. `vlrt verify` reads every byte.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from vlrt.errors import BundleError
from vlrt.folders import cache_folder
from vlrt.whole_file import write_whole

AGAIN = "copy the bundle again, or export it again"
"""What to do about a file that is not what was exported."""

_CHUNK = 1 << 20
_LARGE = 1 << 20
"""Bytes from which remembering is quicker than hashing."""

_SETTLED_NS = 2_000_000_000
"""How old a change must be. Times of files have coarse ticks: a write in the same one as ours would not show."""


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits.

    Raises:
        BundleError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise _unreadable(path, error) from None
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str:
    """As `sha256`, but read from the cache where the file is the one that was hashed before, unchanged since.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        found = os.stat(path)
        note = cache_folder() / "digests" / hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    except OSError as error:
        raise _unreadable(path, error) from None
    if found.st_size < _LARGE:
        return sha256(path)
    marks = _marks(found)
    known = _read(note, marks)
    if known is not None:
        return known
    digest, now = sha256(path), time.time_ns()
    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason not to run
        if _marks(os.stat(path)) == marks and max(found.st_mtime_ns, found.st_ctime_ns) < now - _SETTLED_NS:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, json.dumps([marks, digest]).encode())
    return digest


def _marks(found: os.stat_result) -> list[int]:
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read(note: Path, marks: list[int]) -> str | None:
    try:
        noted, digest = json.loads(note.read_bytes())
    except (OSError, ValueError, TypeError):
        return None
    return digest if noted == marks and isinstance(digest, str) else None


def _unreadable(path: Path, error: OSError) -> BundleError:
    return BundleError(f"`{path.name}` cannot be read: {error.strerror}", AGAIN)
