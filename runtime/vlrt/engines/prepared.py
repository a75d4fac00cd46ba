"""Graphs as this machine runs them best: optimised by onnxruntime once, rewritten for kernels of our own, and kept."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vlrt import device_graph
from vlrt.bundle import Bundle
from vlrt.engines import custom_kernels
from vlrt.engines.graph_cache import (
    GRAPH,
    REWRITTEN,
    REWRITTEN_WEIGHTS,
    GraphCache,
    is_worth_caching,
    is_worth_rewriting,
    stored,
)
from vlrt.engines.onnxruntime import Form, OnnxRuntimeSession, load_library
from vlrt.engines.session import EngineOptions
from vlrt.errors import BundleError, VlrtNote, VlrtWarning
from vlrt.folders import cache_folder
from vlrt.manifest import GraphSpec

_SAVED = "saved"
_TAKES_LONG = 1 << 30
"""Bytes of a graph from which preparing it is worth a word: some seconds for each of them."""


def open_cached(bundle: Bundle, role: str, options: EngineOptions) -> OnnxRuntimeSession:
    """Loads a graph of a bundle; large ones as they were prepared on this machine before, see `GraphCache`.

    Raises:
        BundleError: the bundle lacks the graph, or its file is damaged.
        EngineError: the device cannot be had.
    """
    spec = bundle.manifest.graphs.get(role)
    if spec is None or options.device != "cpu":
        return OnnxRuntimeSession(*bundle.graph(role), options)
    level = custom_kernels.level()
    kernels = f"level {level}, pass {device_graph.VERSION}" if level else ""
    kept = GraphCache(bundle, spec, f"onnxruntime {load_library().__version__} {options.device}", kernels)
    found = kept.find()
    if found is not None:
        return _open_prepared(spec, found, options, lambda: bundle.graph(role)[1])
    spec, path = bundle.graph(role)
    if not (is_worth_rewriting if level else is_worth_caching)(spec, path):
        return OnnxRuntimeSession(spec, path, options)
    if not level:
        with kept.making() as target:
            return OnnxRuntimeSession(spec, path, options, Form(save_to=target))
    if (size := stored(spec, path)) >= _TAKES_LONG:
        what = f"`{spec.file}` ({size / 1e9:.1f} GB) is prepared for this processor, once"
        warnings.warn(what, VlrtNote, stacklevel=2)
    try:
        with kept.making() as target:
            if target is not None:
                _prepare(spec, path, options, target.parent)
    except (OSError, BundleError) as error:
        return _open_unprepared(spec, path, options, error)
    made = kept.made()
    if made is None:
        return OnnxRuntimeSession(spec, path, options)
    return _open_prepared(spec, made, options, lambda: path)


def open_file(spec: GraphSpec, path: Path, options: EngineOptions) -> OnnxRuntimeSession:
    """Loads a graph from its file as `open_cached` loads it from a bundle; what is made for it is not kept.

    Raises:
        BundleError: the file is damaged.
        EngineError: the device cannot be had.
    """
    if options.device != "cpu" or not custom_kernels.level() or not is_worth_rewriting(spec, path):
        return OnnxRuntimeSession(spec, path, options)
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="prepared.", dir=cache_folder()))
    except OSError:  # a cache that cannot be written is no reason not to run
        return OnnxRuntimeSession(spec, path, options)
    try:
        return _open_prepared(spec, _prepare(spec, path, options, folder), options, lambda: path)
    except (OSError, BundleError) as error:
        return _open_unprepared(spec, path, options, error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what is mapped stays until its session goes


def _open_prepared(
    spec: GraphSpec, prepared: Path, options: EngineOptions, given: Callable[[], Path]
) -> OnnxRuntimeSession:
    """Loads a prepared graph; the one that it was made of if onnxruntime should refuse it."""
    try:
        return OnnxRuntimeSession(spec, prepared, options, Form(optimised=True, kernels=prepared.name == REWRITTEN))
    except BundleError as error:
        return _open_unprepared(spec, given(), options, error)


def _open_unprepared(spec: GraphSpec, path: Path, options: EngineOptions, error: Exception) -> OnnxRuntimeSession:
    """Loads a graph as it is where preparing it failed, the disk being full for example."""
    session = OnnxRuntimeSession(spec, path, options)  # tells what is wrong with the graph, if that is it
    _warn(spec, "prepared", error)
    return session


def _warn(spec: GraphSpec, what: str, error: Exception) -> None:
    message = f"`{spec.file}` cannot be {what} for vlrt's own kernels, onnxruntime's run instead: {error}"
    warnings.warn(message, VlrtWarning, stacklevel=4)


def _prepare(spec: GraphSpec, path: Path, options: EngineOptions, folder: Path) -> Path:
    """Writes the prepared form of a graph into an empty folder: rewritten, or as onnxruntime optimised it."""
    saved = folder / _SAVED / GRAPH
    saved.parent.mkdir()
    form = Form(save_to=saved, runs=False, blocked=not _keeps_channels_apart(path))
    OnnxRuntimeSession(spec, path, replace(options, profile=None), form)
    try:
        counts = device_graph.rewrite(saved, folder / REWRITTEN, folder / REWRITTEN_WEIGHTS, custom_kernels.level())
        ours = bool(counts.ours)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - a graph of whatever kind, which onnxruntime understands
        _warn(spec, "rewritten", error)
        ours = False
    if not ours:
        for name in (REWRITTEN, REWRITTEN_WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        for file in saved.parent.iterdir():
            os.rename(file, folder / file.name)
    shutil.rmtree(saved.parent)
    return folder / (REWRITTEN if ours else GRAPH)


def _keeps_channels_apart(path: Path) -> bool:
    try:
        return device_graph.keeps_channels_apart(path)
    except ValueError:  # which `rewrite` will tell, or not find in what onnxruntime makes of it
        return False
