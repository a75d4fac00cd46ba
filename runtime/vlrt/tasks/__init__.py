"""Tasks: one pipeline a file, each built from a bundle."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.engines.session import EngineOptions
from vlrt.errors import UsageError

TASKS = {
    "caption": "Captioner",
    "answer": "Answerer",
    "match": "Matcher",
    "search": "Searcher",
    "classify": "Classifier",
    "embed": "Embedder",
    "tokenize": "Tokenizer",
    "detokenize": "Detokenizer",
    "reconstruct": "Reconstructor",
    "generate": "Painter",
    "edit": "Editor",
    "inpaint": "Inpainter",
    "variations": "Varier",
    "interpolate": "Interpolator",
    "upscale": "Upscaler",
}
"""Task -> class in the module of that name; its constructor takes a bundle and engine options."""


def load(
    task: str,
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    threads: int = 0,
    keep_loaded: bool = False,
) -> Any:
    """Opens a bundle for a task, ready to be called.

    Args:
        task: one of `TASKS`.
        model: a bundle's folder or name; the task's default where `None`.
        device: ``cpu``, ``cuda:0``, …; never falls back to another.
        threads: of the CPU; 0 means all.
        keep_loaded: of tasks that paint: whether every graph stays in memory, as servers want it; others keep them
            in any case.

    Returns:
        An object of the task's class in `TASKS`, of the module `vlrt.tasks.<task>`.

    Raises:
        VlrtError: unknown task or model, a bundle that does not serve it, or a device that cannot be had.
    """
    if task not in TASKS:
        raise UsageError(f"there is no task `{task}`", "one of " + ", ".join(f"`{t}`" for t in TASKS))
    bundle = zoo.resolve(model, task)
    options, pipeline = EngineOptions(device, threads), task_class(task, bundle)
    return pipeline(bundle, options, keep_loaded) if bundle.manifest.diffusion else pipeline(bundle, options)


def task_class(task: str, bundle: Bundle) -> Any:
    """The class that does a task with a bundle."""
    by_codes = task == "generate" and bundle.manifest.image_tokens is not None
    module, name = ("draw", "Drawer") if by_codes else (task, TASKS[task])
    return getattr(import_module(f"vlrt.tasks.{module}"), name)
