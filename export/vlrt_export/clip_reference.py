"""CLIP's rungs of the parity ladder: pixels, ids, embeddings and logits against transformers' own classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.manifest import ImageSpec, Measurement
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.clip_checkpoint import is_transformers_layout
from vlrt_export.graph import Check
from vlrt_export.image_checks import FILTERS, noise_picture
from vlrt_export.modules.clip import Clip, ClipSizes
from vlrt_export.modules.clip_transformer import TransformerSizes
from vlrt_export.modules.clip_vit import VisionTransformerSizes
from vlrt_export.parity import difference

Tolerance = Callable[[str, float], float]

SIZES = ((200, 150), (333, 227), (225, 224), (97, 401), (64, 64))
"""Widths and heights of the pictures the rungs are climbed with; odd margins and both orientations."""

SENTENCES = (
    "a dog",
    "A photo of   two CHILDREN, in the snow.",
    "it's the 2nd café – naïve “quotes” & 100% 犬 🐕!",
    "one red car " * 60,
)


def reference_checks(
    model: Clip, checkpoint: Checkpoint | None, spec: ImageSpec, tolerance: Tolerance
) -> Sequence[Check]:
    """The rungs that transformers is the reference for; none for residual networks, which it does not have.

    Embeddings of residual networks are proven against goldens of the original implementation in the tests.
    """

    def pixels(_: Path) -> Iterator[Measurement]:
        yield _measure_pixels(spec, tolerance("pixels", 1e-6))

    def ids(folder: Path) -> Iterator[Measurement]:
        yield _measure_ids(folder)

    def embeddings(folder: Path) -> Iterator[Measurement]:
        yield from _measure_embeddings(folder, model, checkpoint, tolerance)

    vit = isinstance(model.sizes.vision, VisionTransformerSizes)
    return (pixels, ids, *((embeddings,) if vit else ()))


def _measure_pixels(spec: ImageSpec, limit: float) -> Measurement:
    photographs = [noise_picture(*size) for size in SIZES]
    torchvision = spec.crop_rounding == "half_even"
    expected = _original_pixels(photographs, spec) if torchvision else _transformers_pixels(photographs, spec)
    gap = difference(pictures.preprocess(photographs, spec), expected)
    metric = f"max abs error over {len(SIZES)} pictures"
    if torchvision:
        return Measurement(
            "pixels", metric, gap, limit, "openai/CLIP _transform, written out in torch", torch.__version__
        )
    return _measurement("pixels", metric, gap, limit, "CLIPImageProcessor")


def _original_pixels(photographs: Sequence[Image.Image], spec: ImageSpec) -> NDArray[np.float32]:
    """Resize, CenterCrop, ToTensor and Normalize as torchvision has them for Pillow images, in torch's arithmetic."""
    side, rows = spec.shortest_edge, []
    for picture in photographs:
        width, height = picture.size
        size = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        resized = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((whole - part) / 2.0) for whole, part in zip(resized.size, spec.size[::-1]))
        cropped = resized.crop((left, top, left + spec.size[1], top + spec.size[0]))
        values = torch.from_numpy(np.array(cropped)).permute(2, 0, 1).to(torch.float32).div(255)
        rows.append(values.sub(torch.tensor(spec.mean).view(3, 1, 1)).div(torch.tensor(spec.std).view(3, 1, 1)))
    return torch.stack(rows).numpy()


def _transformers_pixels(photographs: Sequence[Image.Image], spec: ImageSpec) -> NDArray[np.float32]:
    from transformers import CLIPImageProcessor

    stretched = {"height": spec.size[0], "width": spec.size[1]}
    processor = CLIPImageProcessor(
        size=stretched if spec.resize == "stretch" else {"shortest_edge": spec.shortest_edge},
        crop_size=stretched,
        resample=FILTERS[spec.interpolation],
        rescale_factor=spec.scale,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )
    found: NDArray[np.float32] = processor(list(photographs), return_tensors="np")["pixel_values"]
    return found


def _measure_ids(folder: Path) -> Measurement:
    from transformers import CLIPTokenizerFast

    encoder = DualEncoder(Bundle.open(folder))
    spec = encoder.codec.spec
    reference = CLIPTokenizerFast(tokenizer_file=str(folder / spec.tokenizer))
    wrong = 0
    for sentence in SENTENCES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one of the sentences is too long on purpose
            found = encoder.codec.ids(sentence)
        wrong += found != reference(sentence, truncation=True, max_length=spec.context)["input_ids"]
    return _measurement("ids", f"of {len(SENTENCES)} sentences that differ", wrong, 0, "CLIPTokenizerFast")


def _measure_embeddings(
    folder: Path, model: Clip, checkpoint: Checkpoint | None, tolerance: Tolerance
) -> Iterator[Measurement]:
    encoder = DualEncoder(Bundle.open(folder))
    photographs = [noise_picture(*size) for size in SIZES[:3]]
    pixels = torch.from_numpy(pictures.preprocess(photographs, encoder.image_spec))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = encoder.codec.encode(SENTENCES)
    with torch.no_grad():
        expected = transformers_clip(model, checkpoint)(input_ids=torch.from_numpy(ids), pixel_values=pixels)
    images, texts = encoder.images(photographs), encoder.token_ids(ids)
    limit = tolerance("embedding", 1e-4)
    pairs = (("image embeddings", images, expected.image_embeds), ("text embeddings", texts, expected.text_embeds))
    for stage, found, wanted in pairs:
        yield _measurement(stage, "max abs error", difference(found, wanted.numpy()), limit, "CLIPModel")
    # Logits are cosines times a scale of up to 100; the limit is on the cosine, as rounding is.
    scale = encoder.spec.scale
    gap = difference(scale * images @ texts.T, expected.logits_per_image.numpy()) / max(scale, 1.0)
    yield _measurement("logits", "max abs error over scale", gap, limit, "CLIPModel")


def transformers_clip(model: Clip, checkpoint: Checkpoint | None) -> Any:
    """Transformers' `CLIPModel` with the checkpoint's own tensors where it has that layout, else with the model's."""
    from transformers import CLIPConfig, CLIPModel

    if checkpoint is not None and is_transformers_layout(checkpoint):
        reference = CLIPModel(CLIPConfig(**dict(checkpoint.config)))
        weights = {name: tensor.float() for name, tensor in checkpoint.tensors.items()}
        weights = {name: tensor for name, tensor in weights.items() if not name.endswith("position_ids")}
    else:
        reference = CLIPModel(transformers_config(model.sizes))
        weights = to_transformers(model)
    reference.load_state_dict(weights)
    return reference.eval()


def transformers_config(sizes: ClipSizes) -> Any:
    """The `CLIPConfig` of a model with a vision transformer.

    Raises:
        ValueError: the image tower is a residual network.
    """
    from transformers import CLIPConfig

    vision, text = sizes.vision, sizes.text
    if not isinstance(vision, VisionTransformerSizes):
        raise ValueError("transformers has no CLIP with a residual network")
    end = 2 if text.end_id is None else text.end_id
    return CLIPConfig(
        text_config=_tower(text.transformer)
        | {"vocab_size": text.vocabulary, "max_position_embeddings": text.context, "eos_token_id": end},
        vision_config=_tower(vision.transformer) | {"image_size": vision.image_size, "patch_size": vision.patch_size},
        projection_dim=sizes.dimension,
    )


def _tower(sizes: TransformerSizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.width,
        "intermediate_size": sizes.feed_forward,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "hidden_act": sizes.activation,
        "layer_norm_eps": sizes.epsilon,
    }


def to_transformers(model: Clip) -> dict[str, Tensor]:
    """The model's weights under transformers' names."""
    named: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in _BACK:
            name = name.replace(ours, theirs)
        if "in_proj_" in name:
            for which, part in zip("qkv", tensor.chunk(3)):
                named[name.replace("in_proj_", f"{which}_proj.")] = part
        else:
            named[name] = tensor.t() if name.endswith("_projection.weight") else tensor
    return named


_BACK = (
    ("text.token_embedding.", "text_model.embeddings.token_embedding."),
    ("text.positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("text.ln_final.", "text_model.final_layer_norm."),
    ("text.text_projection", "text_projection.weight"),
    ("text.transformer.resblocks.", "text_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


def _measurement(stage: str, metric: str, value: float, limit: float, reference: str) -> Measurement:
    import transformers

    return Measurement(stage, metric, float(value), limit, f"transformers {reference}", transformers.__version__)
