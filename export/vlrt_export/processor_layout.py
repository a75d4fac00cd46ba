"""A ``preprocessor_config.json`` of ViT's relatives as the manifest's image section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlrt.errors import VlrtError
from vlrt.manifest import ImageSpec
from vlrt_export import clip_image

_HALF = [0.5, 0.5, 0.5]
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"resample": 2, "image_mean": _HALF, "image_std": _HALF, "size": 224},
    "DeiT": {"resample": 3, "image_mean": _HALF, "image_std": _HALF, "size": 256, "crop_size": 224},
    "Blip": {"resample": 3, "size": {"height": 384, "width": 384}},
}
"""What transformers' processors do where the file does not say; ViT's also serves Swin, whose checkpoints name it."""


def image_spec(processor: Mapping[str, Any], image_size: tuple[int, int]) -> ImageSpec:
    """The preprocessing that the file describes.

    Args:
        processor: the parsed file; empty for ViT's defaults at the model's own size.
        image_size: height and width in pixels that the model takes.

    Raises:
        VlrtError: a processor whose steps are not known, or pixels of another size than the model takes.
    """
    height, width = image_size
    if height != width:
        raise VlrtError(f"the encoder takes {height}x{width} pixels, only squares are served", "report the model")
    own = {"size": {"height": height, "width": width}}
    given = processor or own
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "ViT")
    name = next((name for name in _DEFAULTS if kind.startswith(name)), None)
    if name is None:
        raise VlrtError(f"images for `{kind}` are not known", f"known are {', '.join(_DEFAULTS)}")
    full = {**_DEFAULTS[name], **{key: item for key, item in given.items() if item is not None}}
    # These processors stretch; CLIP's takes a lone number as the shortest edge.
    stretched = _sides(full["size"])
    crops = name == "DeiT" and full.get("do_center_crop", True)
    size = _sides(full["crop_size"]) if crops else stretched
    spec = clip_image.image_spec({**full, "do_center_crop": False, "size": size, "crop_size": size}, height)
    return replace(spec, stretched=(stretched["height"], stretched["width"])) if crops else spec


def _sides(value: Any) -> dict[str, int]:
    if isinstance(value, int):
        return {"height": value, "width": value}
    if isinstance(value, dict) and isinstance(value.get("height"), int) and isinstance(value.get("width"), int):
        return {"height": value["height"], "width": value["width"]}
    raise VlrtError(f"preprocessor_config.json has the size {value!r}", "expected a number, or height and width")
