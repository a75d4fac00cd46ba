"""A ``preprocessor_config.json`` of transformers as the manifest's image section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vlrt.errors import BundleError
from vlrt.manifest import ImageSpec

_FILTERS: dict[int, Literal["nearest", "bilinear", "bicubic", "lanczos"]] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}
_ALWAYS = ("do_resize", "do_rescale", "do_normalize")
_UNKNOWN = ("do_pad", "do_thumbnail", "do_align_long_axis", "do_flip_channel_order", "do_image_splitting")
_HINT = "export the model with `vlrt export`, or correct preprocessor_config.json"


def image_spec(config: Mapping[str, Any], graph_input: str) -> ImageSpec:
    """What transformers' image processors of this configuration do, where it is one of the steps we have.

    A side that stands alone means a stretch, unless a centre crop follows, which makes it the shorter edge (as ViT's
    and CLIP's processors read it).

    Args:
        config: the parsed file.
        graph_input: name of the graph's input.

    Raises:
        BundleError: steps, sizes or numbers that the runtime does not have.
    """
    for step in _ALWAYS:
        if not config.get(step, True):
            raise BundleError(f"preprocessor_config.json switches off `{step}`, which is not served", _HINT)
    for step in _UNKNOWN:
        if config.get(step):
            raise BundleError(f"preprocessor_config.json asks for `{step}`, which is not served", _HINT)
    crops = bool(config.get("do_center_crop", False))
    size = config.get("size")
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size if crops else None
    if edge is not None and not (crops and isinstance(edge, int)):
        raise BundleError(f"preprocessor_config.json has the size {size!r}, which leaves the other side open", _HINT)
    target = _sides(config.get("crop_size")) if crops else _sides(size)
    if crops and edge is None and _sides(size) != target:
        what = f"preprocessor_config.json stretches to {list(_sides(size))} and crops to {list(target)}"
        raise BundleError(f"{what}, which is not served", _HINT)
    resample = config.get("resample", 2)
    if resample not in _FILTERS:
        raise BundleError(f"preprocessor_config.json asks for resampling {resample!r}, expected 0 to 3", _HINT)
    return ImageSpec(
        size=target,
        mean=_channels(config, "image_mean"),
        std=_channels(config, "image_std"),
        scale=_scale(config.get("rescale_factor", 1 / 255)),
        resize="stretch" if edge is None else "shortest_edge",
        shortest_edge=edge or 0,
        interpolation=_FILTERS[resample],
        input=graph_input,
    )


def _sides(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, Mapping) and isinstance(value.get("height"), int) and isinstance(value.get("width"), int):
        return value["height"], value["width"]
    raise BundleError(f"preprocessor_config.json has the size {value!r}, expected height and width", _HINT)


def _channels(config: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = config.get(name)
    if isinstance(values, list) and len(values) == 3 and all(isinstance(v, (int, float)) for v in values):
        return float(values[0]), float(values[1]), float(values[2])
    raise BundleError(f"preprocessor_config.json has the {name} {values!r}, expected three numbers", _HINT)


def _scale(value: Any) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    raise BundleError(f"preprocessor_config.json has the rescale_factor {value!r}, expected a number", _HINT)
