"""Captions, retrieves and classifies photographs from exported bundles, without torch.

``vlrt.load("caption")("photo.jpg").text``
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlrt.errors import BundleError, EngineError, ImageError, UsageError, VlrtError

if TYPE_CHECKING:
    from vlrt.bundle import Bundle
    from vlrt.tasks import load

__version__ = "0.1.0"

__all__ = ["Bundle", "BundleError", "EngineError", "ImageError", "UsageError", "VlrtError", "__version__", "load"]

_LAZY = {"Bundle": "vlrt.bundle", "load": "vlrt.tasks"}
"""Public name -> module; imported on first use, so that `import vlrt` costs nothing."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'vlrt' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
