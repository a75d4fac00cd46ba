"""Bundles of models that have no family here: Optimum exports them, and the result is proven and wrapped."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlrt import foreign
from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.engines import Sessions
from vlrt.errors import VlrtError
from vlrt.manifest import Manifest, Measurement, Source
from vlrt_export.bundle_writer import check_target, wrap_files
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.generate_reference import measure_sequences
from vlrt_export.graph import Check
from vlrt_export.image_checks import SIZES, noise_picture
from vlrt_export.parity import difference

_KIND, _TASK = "vision-encoder-decoder", "image-to-text-with-past"
_PIXELS, _STATES, _SCORES = 1e-5, 1e-3, 1e-3
"""Limits on pixels, on the image encoder's states, and on the scores of sequences."""


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
    if checkpoint.folder is None or kind != _KIND:
        what = f"`{checkpoint.origin}` is a `{kind}` model; of Optimum's exports the runtime serves `{_KIND}`"
        raise VlrtError(what, "`vlrt models` lists what has a family here")
    with tempfile.TemporaryDirectory(prefix="vlrt-optimum.") as written:
        progress("exporting with Optimum")
        _run(checkpoint.folder, Path(written))
        described, places = foreign.describe(Path(written))
        note = "exported by Optimum; its caches grow by concatenation"
        origin = Source(checkpoint.origin, checkpoint.revision, "see the checkpoint's source", note)
        described = replace(described, name=target.name, source=origin)
        return wrap_files(described, places, _checks(checkpoint), target, force=force, progress=progress)


def _has_optimum() -> bool:
    """Optimum itself is installed beside other libraries too; its ONNX exporter is a package of its own."""
    try:
        return find_spec("optimum.exporters.onnx") is not None
    except ModuleNotFoundError:
        return False


def _run(folder: Path, written: Path) -> None:
    from optimum.exporters.onnx import main_export

    with _quiet():
        try:
            main_export(str(folder), str(written), task=_TASK, do_validation=False, trust_remote_code=False)
        except Exception as error:  # whatever Optimum and what it calls raise: a dozen unrelated kinds
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise VlrtError(
                f"Optimum cannot export `{folder.name}`: {lines[0][:300]}", "see its list of models"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optimum and the tracer tell their own story at length."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _checks(checkpoint: Checkpoint) -> Sequence[Check]:
    """Pixels, encoder and sequences against the library's own classes, loaded from the same folder."""
    import transformers

    with _quiet():
        reference: Any = transformers.VisionEncoderDecoderModel.from_pretrained(str(checkpoint.folder)).eval()
        processor: Any = transformers.AutoImageProcessor.from_pretrained(str(checkpoint.folder), use_fast=False)
    library = ("transformers", transformers.__version__)

    def pixels(folder: Path) -> Iterator[Measurement]:
        expected = processor([noise_picture(*size) for size in SIZES], return_tensors="np")["pixel_values"]
        gap = difference(_pixels(Bundle.open(folder)), expected)
        yield Measurement("pixels", f"max abs error over {len(SIZES)} pictures", gap, _PIXELS, *library)

    def encoder(folder: Path) -> Iterator[Measurement]:
        bundle = Bundle.open(folder)
        seen = _pixels(bundle)
        with torch.no_grad():
            expected = reference.encoder(torch.from_numpy(seen)).last_hidden_state.numpy()
        session = Sessions(bundle).get("image_encoder")
        found = session.run(**{session.spec.inputs[0].name: seen})[session.spec.outputs[0].name]
        yield Measurement("image_encoder", "max abs error", difference(found, expected), _STATES, *library)

    def sequences(folder: Path) -> Iterator[Measurement]:
        spec = Bundle.open(folder).manifest.decode
        if spec is None:
            raise ValueError("the staged bundle does not decode")
        ids = {"decoder_start_token_id": spec.start_ids[0], "pad_token_id": spec.pad_id}

        def generate(given: dict[str, Tensor], **options: Any) -> Any:
            return reference.generate(given["pixel_values"], eos_token_id=list(spec.end_ids), **ids, **options)

        with _quiet():
            measured = list(measure_sequences(folder, generate, "captions", "VisionEncoderDecoderModel", _SCORES))
        yield from measured

    return (pixels, encoder, sequences)


def _pixels(bundle: Bundle) -> Any:
    image = bundle.manifest.image
    if image is None:
        raise ValueError("the staged bundle sees nothing")
    return pictures.preprocess([noise_picture(*size) for size in SIZES], image)
