"""What the user named: files, folders and patterns become a list of photographs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlrt.errors import UsageError


def photographs(names: Iterable[str]) -> list[Path]:
    """Every photograph that was meant, in a stable order and once each.

    A folder gives the image files in it and below, sorted; a pattern what it matches, sorted; any other name stays as
    it is, also where there is no such file, so that a missing one is reported and the others go on.

    Raises:
        UsageError: a folder or pattern without a single photograph.
    """
    found: dict[Path, None] = {}
    for name in names:
        found.update(dict.fromkeys(_expand(name)))
    return list(found)


def _expand(name: str) -> Sequence[Path]:
    path = Path(name)
    if os.path.isdir(path):
        return _need(name, sorted(p for p in path.rglob("*") if _is_photograph(p)), "folder")
    if glob.has_magic(name) and not os.path.exists(path):
        found = (Path(match) for match in glob.glob(name, recursive=True))
        return _need(name, sorted(p for p in found if p.is_file()), "pattern")
    return [path]


def _is_photograph(path: Path) -> bool:
    from vlrt.image import SUFFIXES

    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _need(name: str, found: Sequence[Path], kind: str) -> Sequence[Path]:
    if not found:
        from vlrt.image import SUFFIXES

        raise UsageError(f"the {kind} `{name}` holds no photograph", "endings taken: " + " ".join(SUFFIXES))
    return found
