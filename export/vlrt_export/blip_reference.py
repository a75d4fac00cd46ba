"""BLIP's rungs of the parity ladder: pixels, sequences and probabilities against transformers' own classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.errors import BundleError
from vlrt.manifest import ImageSpec, Measurement
from vlrt_export.bert_layout import bert_layout
from vlrt_export.blip_checkpoint import CAPTIONING, QUESTIONS, RETRIEVAL, Blip, decoder_layout, vision_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.generate_reference import measure_sequences
from vlrt_export.graph import Check
from vlrt_export.image_checks import measure_pixels, noise_picture
from vlrt_export.parity import difference
from vlrt_export.weight_layout import invert, linear

Tolerance = Callable[[str, float], float]

_CLASSES = {
    CAPTIONING: "BlipForConditionalGeneration",
    QUESTIONS: "BlipForQuestionAnswering",
    RETRIEVAL: "BlipForImageTextRetrieval",
}
_PICTURES = ((200, 150), (97, 401))
_QUESTION = "how many dogs are there?"
_SENTENCES = ("a dog", "two children play in the snow near a red car")


def reference_checks(
    model: Blip, checkpoint: Checkpoint | None, spec: ImageSpec, tolerance: Tolerance
) -> Sequence[Check]:
    """The rungs that transformers is the reference for."""

    def pixels(_: Path) -> Iterator[Measurement]:
        yield measure_pixels(spec, tolerance("pixels", 1e-6), "BlipImageProcessor")

    def sequences(folder: Path) -> Iterator[Measurement]:
        reference = transformers_blip(model, checkpoint)

        def generate(given: dict[str, Tensor], **options: Any) -> Any:
            asked = {"input_ids": given["input_ids"]} if model.kind == QUESTIONS else {}
            return reference.generate(pixel_values=given["pixels"], **asked, **options)

        answers = model.kind == QUESTIONS
        what, question = ("answers", _QUESTION) if answers else ("captions", "")
        limit = tolerance("score", 1e-4)
        yield from measure_sequences(folder, generate, what, _CLASSES[model.kind], limit, question)

    def matching(folder: Path) -> Iterator[Measurement]:
        yield from _measure_matching(folder, transformers_blip(model, checkpoint), tolerance("match", 1e-4))

    stretches = (pixels,) if spec.resize == "stretch" else ()
    return (*stretches, matching if model.kind == RETRIEVAL else sequences)


def transformers_blip(model: Blip, checkpoint: Checkpoint | None) -> Any:
    """Transformers' own class with the checkpoint's own tensors, or with random ones under its names."""
    import transformers

    config = transformers.BlipConfig(**checkpoint.config) if checkpoint else transformers_config(model)
    reference = getattr(transformers, _CLASSES[model.kind])(config)
    weights = {n: t.float() for n, t in checkpoint.tensors.items()} if checkpoint else to_transformers(model)
    missing, _ = reference.load_state_dict(weights, strict=False)
    tied = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.predictions.bias", "logit_scale")
    lacking = [name for name in missing if not name.endswith(tied)]
    if lacking:
        raise ValueError(f"the reference was given no `{lacking[0]}`")
    return reference.eval()


def transformers_config(model: Blip) -> Any:
    """The `BlipConfig` of a model."""
    import transformers

    seen, said, ids = model.sizes.vision, model.sizes.text, model.ids
    vision = {**_tower(seen), "image_size": seen.image_size, "patch_size": seen.patch_size}
    text = {**_tower(said), "vocab_size": said.vocabulary, "max_position_embeddings": said.positions}
    text |= {"bos_token_id": ids.bos, "sep_token_id": ids.sep, "pad_token_id": ids.pad, "eos_token_id": ids.sep}
    shared = model.sizes.shared
    return transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=shared)


def to_transformers(model: Blip) -> dict[str, Tensor]:
    """The model's weights under transformers' names."""
    layers = model.sizes.text.layers
    found = invert(model.vision, vision_layout(model.sizes.vision.layers))
    if model.decoder is not None:
        found |= invert(model.decoder, decoder_layout({}, layers, tied=True))
    if model.encoder is not None:
        found |= invert(model.encoder, bert_layout("text_encoder.", layers, cross=True, token_types=False))
    if model.heads is not None:
        names = ("vision_proj", "text_proj", "itm_head")
        found |= invert(model.heads, {k: v for name in names for k, v in linear(name, name).items()})
    return found


def _tower(sizes: Any) -> dict[str, Any]:
    return {
        "hidden_size": sizes.width,
        "intermediate_size": sizes.feed_forward,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "hidden_act": sizes.activation,
        "layer_norm_eps": sizes.epsilon,
    }


def _measure_matching(folder: Path, reference: Any, limit: float) -> Iterator[Measurement]:
    import transformers

    bundle = Bundle.open(folder)
    spec, image = bundle.manifest.match, bundle.manifest.image
    if spec is None or image is None:
        raise BundleError("the staged bundle matches nothing")
    encoder = DualEncoder(bundle)
    photographs = [noise_picture(*size) for size in _PICTURES]
    pixels, ids = pictures.preprocess(photographs, image), encoder.codec.encode(_SENTENCES)
    pairs = {image.input: pixels, "input_ids": np.concatenate([ids] * len(pixels))}
    probabilities = encoder.sessions.run_chain((*spec.image, spec.graph), pairs)[spec.output]
    repeated = torch.from_numpy(pixels.repeat(len(ids), 0))
    words = torch.from_numpy(pairs["input_ids"])
    given = {"input_ids": words, "attention_mask": (words != encoder.codec.spec.pad_id).long()}
    with torch.no_grad():
        scores = reference(pixel_values=repeated, **given).itm_score.softmax(-1)[:, 1]
        cosines = reference(pixel_values=repeated, **given, use_itm_head=False).itm_score
    ending = (limit, "transformers BlipForImageTextRetrieval", transformers.__version__)
    yield Measurement("matching", "max abs error", difference(probabilities, scores.numpy()), *ending)
    ours = encoder.images(photographs).repeat(len(ids), 0) @ encoder.token_ids(pairs["input_ids"]).T
    yield Measurement("cosines", "max abs error", difference(ours, cosines.numpy()), *ending)
