"""CLIP's image preprocessing as the manifest's image section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vlrt.errors import VlrtError
from vlrt.manifest import ImageSpec

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the original training images, per RGB channel on 0-1; openai/CLIP ``clip.py``."""

_FILTERS: dict[int, Literal["nearest", "bilinear", "bicubic", "lanczos"]] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}


def original_image_spec(image_size: int) -> ImageSpec:
    """The preprocessing of openai/CLIP: bicubic on the shortest edge, centre crop as torchvision rounds it."""
    return ImageSpec(
        size=(image_size, image_size),
        mean=MEAN,
        std=STD,
        scale=1 / 255,
        resize="shortest_edge",
        shortest_edge=image_size,
        crop_rounding="half_even",
    )


def image_spec(processor: Mapping[str, Any], image_size: int) -> ImageSpec:
    """The preprocessing that a ``preprocessor_config.json`` describes, with `CLIPImageProcessor`'s defaults.

    Args:
        processor: the parsed file; empty for the defaults at the model's own size.
        image_size: side in pixels that the model takes.

    Raises:
        VlrtError: it describes steps that CLIP does not have, or pixels of another size than the model takes.
    """
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not processor.get(step, True) and not (step == "do_center_crop" and _stretches(processor)):
            raise VlrtError(f"preprocessor_config.json switches off `{step}`", "only CLIP's own steps are known")
    crop = _sides(processor.get("crop_size", image_size))
    size = processor.get("size", image_size)
    edge = size.get("shortest_edge") if isinstance(size, dict) else size
    if edge is None:
        crop = _sides(size)
    elif not isinstance(edge, int):
        raise VlrtError(f"preprocessor_config.json has the size {size!r}", "expected a number of pixels")
    if crop != (image_size, image_size):
        raise VlrtError(f"preprocessor_config.json crops to {list(crop)}, the model takes {image_size} pixels")
    resample = processor.get("resample", 3)
    if resample not in _FILTERS:
        raise VlrtError(f"preprocessor_config.json asks for resampling `{resample}`, expected 0 to 3")
    return ImageSpec(
        size=crop,
        mean=_channels(processor.get("image_mean", MEAN)),
        std=_channels(processor.get("image_std", STD)),
        scale=float(processor.get("rescale_factor", 1 / 255)),
        resize="stretch" if edge is None else "shortest_edge",
        shortest_edge=0 if edge is None else edge,
        interpolation=_FILTERS[resample],
    )


def _stretches(processor: Mapping[str, Any]) -> bool:
    size = processor.get("size")
    return isinstance(size, dict) and "shortest_edge" not in size


def _sides(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, dict) and isinstance(value.get("height"), int) and isinstance(value.get("width"), int):
        return value["height"], value["width"]
    raise VlrtError(f"preprocessor_config.json has the size {value!r}", "expected a number, or height and width")


def _channels(values: Any) -> tuple[float, float, float]:
    if isinstance(values, (list, tuple)) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values):
        return float(values[0]), float(values[1]), float(values[2])
    raise VlrtError(f"preprocessor_config.json has the mean or std {values!r}, expected three numbers")
