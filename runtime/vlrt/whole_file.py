"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(target: Path, content: bytes) -> None:
    """Writes `content` under a temporary name beside `target` and renames it.

    Whatever goes wrong, an interrupt included, `target` stays as it was and nothing else is left in its folder.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name[:32]}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's are readable by their owner only
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
