"""Bundles of models that have no family here: Optimum exports them, and the result is proven and wrapped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from vlrt import foreign
from vlrt.errors import VlrtError
from vlrt.manifest import Manifest, Source
from vlrt_export.bundle_writer import check_target, wrap_files
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.graph import Check
from vlrt_export.optimum_checks import captioner_checks, dual_encoder_checks, quiet

_SERVED: dict[str, tuple[str, Callable[[Checkpoint], Sequence[Check]]]] = {
    "vision-encoder-decoder": ("image-to-text-with-past", captioner_checks),
    "clip": ("feature-extraction", dual_encoder_checks),
    "siglip": ("feature-extraction", dual_encoder_checks),
}
"""Kinds of model -> Optimum's task that the runtime serves, and what proves it."""


def export_via_optimum(
    source: str, target: Path, *, force: bool = False, progress: Callable[[str], None] = lambda line: None
) -> Manifest:
    """Lets Optimum export a checkpoint, holds the graphs against transformers, and writes them as a bundle.

    Args:
        source: hub id or folder in transformers' layout.
        target, force, progress: as for `vlrt_export.bundle_writer.write_bundle`.

    Raises:
        VlrtError: Optimum is not installed or cannot export the model, the runtime does not serve what comes of it, or
            parity fails.
    """
    if not _has_optimum():
        raise VlrtError("`--via optimum` needs Optimum's ONNX exporter", "pip install 'vlrt[optimum]'")
    check_target(target, force)
    checkpoint = open_checkpoint(source)
    kind = checkpoint.config.get("model_type")
    if checkpoint.folder is None or kind not in _SERVED:
        served = ", ".join(f"`{name}`" for name in _SERVED)
        what = f"`{checkpoint.origin}` is a `{kind}` model; of Optimum's exports the runtime serves {served}"
        raise VlrtError(what, "`vlrt models` lists what has a family here")
    task, checks = _SERVED[kind]
    with tempfile.TemporaryDirectory(prefix="vlrt-optimum.") as written:
        progress("exporting with Optimum")
        _run(checkpoint.folder, Path(written), task)
        described, places = foreign.describe(Path(written))
        note = "exported by Optimum" + ("; its caches grow by concatenation" if described.decode else "")
        origin = Source(checkpoint.origin, checkpoint.revision, "see the checkpoint's source", note)
        described = replace(described, name=target.name, source=origin)
        return wrap_files(described, places, checks(checkpoint), target, force=force, progress=progress)


def _has_optimum() -> bool:
    """Optimum itself is installed beside other libraries too; its ONNX exporter is a package of its own."""
    try:
        return find_spec("optimum.exporters.onnx") is not None
    except ModuleNotFoundError:
        return False


def _run(folder: Path, written: Path, task: str) -> None:
    from optimum.exporters.onnx import main_export

    with quiet():
        try:
            main_export(str(folder), str(written), task=task, do_validation=False, trust_remote_code=False)
        except Exception as error:  # whatever Optimum and what it calls raise: a dozen unrelated kinds
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise VlrtError(
                f"Optimum cannot export `{folder.name}`: {lines[0][:300]}", "see its list of models"
            ) from error
