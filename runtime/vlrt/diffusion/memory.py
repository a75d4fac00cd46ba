"""Memory of the process: what is free, and giving back what was used."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path


def give_back() -> None:
    """Returns freed memory to the system, so that the next stage finds it: the C library keeps what is in pieces."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def available() -> int | None:
    """Bytes that can be used without swapping, or `None` where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration, IndexError):
        return None
