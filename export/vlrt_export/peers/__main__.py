"""``python -m vlrt_export.peers prepare|serve SIDE JOB``."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from vlrt.benchmark_job import SkippedError, read_job, serve
from vlrt.errors import VlrtError

_MODULES = {
    "transformers": "transformers_peer",
    "diffusers": "diffusers_peer",
    "optimum": "optimum_peer",
    "openvino": "openvino_peer",
}
_WITHOUT = {
    "onnxruntime-genai": "it has none of our families: it runs chat models of its own exporter only",
    "ctranslate2": "it has none of our families: its converters know no decoder that reads an image",
}


def main(what: str, side: str, path: str) -> None:
    """Prepares the weights for a side, or serves as that side."""
    job = read_job(path)
    if side in _WITHOUT:
        raise SkippedError(_WITHOUT[side])
    peer: Any = import_module(f"vlrt_export.peers.{_MODULES[side]}")
    if what == "prepare":
        peer.prepare(job)
    else:
        serve(job, peer.load)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except VlrtError as error:
        sys.exit(f"error: {error.what}")
