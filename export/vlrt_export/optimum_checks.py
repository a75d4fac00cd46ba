"""What proves graphs that Optimum exported: transformers' own classes, loaded from the same folder."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.engines import Sessions
from vlrt.manifest import Measurement
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.generate_reference import measure_sequences
from vlrt_export.graph import Check
from vlrt_export.image_checks import SIZES, noise_picture
from vlrt_export.parity import difference

_PIXELS, _STATES, _SCORES, _COSINES = 1e-5, 1e-3, 1e-3, 1e-4
"""Limits on pixels, on the image encoder's states, on the scores of sequences, and on embeddings of length one."""

_SENTENCES = ("a dog", "Two children play in the snow, near a red car.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optimum and the tracer tell their own story at length."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def captioner_checks(checkpoint: Checkpoint) -> Sequence[Check]:
    """Pixels, encoder and sequences against `VisionEncoderDecoderModel`, loaded from the same folder."""
    import transformers

    with quiet():
        reference: Any = transformers.VisionEncoderDecoderModel.from_pretrained(str(checkpoint.folder)).eval()
    library = ("transformers", transformers.__version__)

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

        with quiet():
            measured = list(measure_sequences(folder, generate, "captions", "VisionEncoderDecoderModel", _SCORES))
        yield from measured

    return (_pixel_check(checkpoint), encoder, sequences)


def dual_encoder_checks(checkpoint: Checkpoint) -> Sequence[Check]:
    """Pixels, ids and the embeddings of both towers against CLIP's or SigLIP's class, loaded from the same folder."""
    import transformers

    with quiet():
        reference: Any = transformers.AutoModel.from_pretrained(str(checkpoint.folder)).eval()
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(checkpoint.folder))
    library = ("transformers", transformers.__version__)

    def ids(folder: Path) -> Iterator[Measurement]:
        codec = DualEncoder(Bundle.open(folder)).codec
        differ = sum(codec.ids(sentence) != tokenizer(sentence)["input_ids"] for sentence in _SENTENCES)
        yield Measurement("ids", f"of {len(_SENTENCES)} sentences, those that differ", float(differ), 0.0, *library)

    def embeddings(folder: Path) -> Iterator[Measurement]:
        bundle = Bundle.open(folder)
        encoder, seen = DualEncoder(bundle), _pixels(bundle)
        words = encoder.codec.encode(_SENTENCES)
        with torch.no_grad():
            image = _normal(reference.get_image_features(pixel_values=torch.from_numpy(seen)))
            text = _normal(reference.get_text_features(input_ids=torch.from_numpy(words)))
        for stage, found, expected in (
            ("image embedding", encoder.pixels(seen), image),
            ("text embedding", encoder.token_ids(words), text),
        ):
            yield Measurement(stage, "max abs error", difference(found, expected), _COSINES, *library)

    return (_pixel_check(checkpoint), ids, embeddings)


def _pixel_check(checkpoint: Checkpoint) -> Check:
    import transformers

    with quiet():
        processor: Any = transformers.AutoImageProcessor.from_pretrained(str(checkpoint.folder), use_fast=False)

    def pixels(folder: Path) -> Iterator[Measurement]:
        expected = processor([noise_picture(*size) for size in SIZES], return_tensors="np")["pixel_values"]
        gap = difference(_pixels(Bundle.open(folder)), expected)
        what = f"max abs error over {len(SIZES)} pictures"
        yield Measurement("pixels", what, gap, _PIXELS, "transformers", transformers.__version__)

    return pixels


def _normal(vectors: Tensor) -> Any:
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


def _pixels(bundle: Bundle) -> Any:
    image = bundle.manifest.image
    if image is None:
        raise ValueError("the staged bundle sees nothing")
    return pictures.preprocess([noise_picture(*size) for size in SIZES], image)
