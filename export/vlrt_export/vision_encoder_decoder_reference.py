"""Rungs of the parity ladder against transformers' `VisionEncoderDecoderModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlrt.manifest import ImageSpec, Measurement
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.generate_reference import measure_sequences
from vlrt_export.graph import Check
from vlrt_export.image_checks import measure_pixels
from vlrt_export.vision_encoder_decoder import PROJECTION, VisionText
from vlrt_export.weight_layout import invert

Tolerance = Callable[[str, float], float]


def reference_checks(
    model: VisionText, checkpoint: Checkpoint | None, spec: ImageSpec, tolerance: Tolerance
) -> Sequence[Check]:
    """Pixels where the processor stretches, and sequences."""

    def pixels(_: Path) -> Iterator[Measurement]:
        crop = {"crop_size": dict(zip(("height", "width"), spec.size))} if spec.stretched else {}
        kind = "DeiTImageProcessor" if crop else "ViTImageProcessor"
        yield measure_pixels(spec, tolerance("pixels", 1e-6), kind, **crop)

    def sequences(folder: Path) -> Iterator[Measurement]:
        reference = transformers_model(model, checkpoint)
        start, pad = model.ids.start, model.ids.pad

        def generate(given: dict[str, Tensor], **options: Any) -> Any:
            ids = {"decoder_start_token_id": start, "pad_token_id": pad, "eos_token_id": list(model.ids.ends)}
            return reference.generate(given["pixels"], **ids, **options)

        limit = tolerance("score", 1e-4)
        yield from measure_sequences(folder, generate, "captions", "VisionEncoderDecoderModel", limit)

    return (pixels, sequences) if spec.resize == "stretch" else (sequences,)


def transformers_model(model: VisionText, checkpoint: Checkpoint | None) -> Any:
    """Transformers' own class with the checkpoint's own tensors, or with random ones under its names.

    Raises:
        ValueError: the reference was not given all of its tensors.
    """
    import transformers

    reference = transformers.VisionEncoderDecoderModel(_config(model))
    weights = {n: t.float() for n, t in checkpoint.tensors.items()} if checkpoint else to_transformers(model)
    missing, _ = reference.load_state_dict(weights, strict=False)
    tied = ("lm_head.weight", "decoder.weight", "decoder.bias", "predictions.bias", "lm_head.bias")
    lacking = [name for name in missing if not name.endswith(tied) and ".pooler." not in name]
    lacking = [name for name in lacking if "token_type_embeddings" not in name or checkpoint is not None]
    if lacking:
        raise ValueError(f"the reference was given no `{lacking[0]}`")
    if checkpoint is None:
        with torch.no_grad():  # ours adds the first token type to the positions, so that random weights have none
            for name, parameter in reference.named_parameters():
                if "token_type_embeddings" in name:
                    parameter.zero_()
    return reference.eval()


def to_transformers(model: VisionText) -> dict[str, Tensor]:
    """The model's weights under transformers' names."""
    found = invert(model.decoder.module, model.decoder.layout)
    if model.encoder.layout is not None:
        found |= invert(model.encoder.module, model.encoder.layout)
    else:
        states = model.encoder.module.state_dict()
        found |= {f"encoder.{name.removeprefix('model.')}": tensor for name, tensor in states.items()}
    return found | (invert(model.projection, PROJECTION) if model.projection is not None else {})


def _config(model: VisionText) -> Any:
    import transformers

    config = {name: value for name, value in model.config.items() if name != "model_type"}
    for part in ("encoder", "decoder"):
        config[part] = {**config[part]}
    config["decoder"] |= {"is_decoder": True, "add_cross_attention": True}
    made = transformers.VisionEncoderDecoderConfig(**config)
    made.encoder._attn_implementation = made.decoder._attn_implementation = "eager"
    return made
