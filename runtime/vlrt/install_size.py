"""How much of a disk a library takes with everything it cannot do without."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")


def install_size(packages: Iterable[str]) -> tuple[float, int]:
    """Size of distributions and of all that they require, as installed here.

    Args:
        packages: names of distributions; those that are not installed count nothing.

    Returns:
        10^6 bytes, and the number of distributions.
    """
    wanted, seen, total = list(packages), set(), 0
    while wanted:
        name = _plain(wanted.pop())
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name in seen:
            continue
        seen.add(name)
        total += sum(_bytes(Path(str(file.locate()))) for file in found.files or ())
        wanted += [_required(line) for line in found.requires or () if "extra ==" not in line]
    return round(total / 1e6, 1), len(seen)


def folder_size(folder: Path) -> float:
    """Size of all files below a folder, in 10^6 bytes."""
    return round(sum(_bytes(path) for path in folder.rglob("*")) / 1e6, 1)


def _required(line: str) -> str:
    found = _NAME.match(line)
    return found.group() if found else ""


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else 0
