"""Kernels of our own for the CPU: a library of operators that onnxruntime loads; its sources are `cpp_ext/kernels`."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from vlrt.errors import EngineError, VlrtWarning

DOMAIN = "vlrt"
"""Of the operators, in graphs that were rewritten for them."""

AVX512, AVX512_VNNI = 1, 2
"""Levels: what the processor must have for products in fp32 and attention, and for products of bytes."""

_NAMES = {AVX512: "AVX-512", AVX512_VNNI: "AVX-512 VNNI"}
_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


def level() -> int:
    """What the kernels can do on this processor; 0: nothing, they are not built for it, or `VLRT_KERNELS` is 0.

    `VLRT_KERNELS=always` has graphs rewritten for them that are too small to gain; see `vlrt.engines.graph_cache`.
    """
    return 0 if os.environ.get("VLRT_KERNELS") == "0" else _level()


def level_name() -> str:
    """The instructions that the kernels use here, for people."""
    return _NAMES.get(level(), "none")


def register(settings: Any) -> None:
    """Lets sessions made with onnxruntime's `settings` run graphs that have operators of `DOMAIN`.

    Raises:
        EngineError: onnxruntime cannot load the library, or the processor cannot run it.
    """
    try:
        settings.register_custom_ops_library(str(_path()))
    except Exception as error:  # noqa: BLE001 - onnxruntime raises one plain Exception class per status
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(f"`{_path().name}` cannot be loaded by onnxruntime: {line}", "install vlrt again") from None


@cache
def _level() -> int:
    path = _path()
    if not path.is_file():  # other processors than x86-64
        return 0
    try:
        library = ctypes.CDLL(str(path))
        return int(library.vlrt_kernels_level())
    except (OSError, AttributeError) as error:
        what = f"`{path.name}` cannot be loaded, onnxruntime's own kernels run instead: {error}"
        warnings.warn(what, VlrtWarning, stacklevel=3)
        return 0


def _path() -> Path:
    return Path(__file__).resolve().parents[1] / f"_kernels{_SUFFIX}"
