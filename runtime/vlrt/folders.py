"""Where the user's bundles lie, and what can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Folder of exported bundles: `VLRT_HOME`, or `vlrt` in the user's data folder."""
    given = os.environ.get("VLRT_HOME")
    if given:
        return Path(given)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "vlrt"


def cache_folder() -> Path:
    """Folder of what can be computed again: `VLRT_CACHE`, or `vlrt` in the user's cache folder."""
    given = os.environ.get("VLRT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlrt"
