"""A DALL-E as the exporter sees it: text, transformer, and what its checkpoint brings beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlrt.attention_patterns import PatternSpec
from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint, LazyTensors
from vlrt_export.image_codec import ImageCodec
from vlrt_export.modules.dalle import Dalle, DalleSizes, DalleText, rotary_angles
from vlrt_export.weight_layout import Layout, Part, linear, same

KINDS = {"row": "row", "column": "column", "conv": "above_left", "recent": "recent", "around": "around"}
"""Names of attentions in the zoo's sizes, with their patterns' kinds."""


@dataclass(frozen=True)
class DalleModel:
    """Both modules in eval mode.

    Args:
        text, decoder: of one set of sizes.
        checkpoint: where the weights come from; `None` where they are random.
        start, end: ids that a text stands between; `None` where there are none.
        lowercase: whether texts are made lowercase first.
        codec: that of the pictures, where the checkpoint brings it.
    """

    text: DalleText
    decoder: Dalle
    checkpoint: Checkpoint | None = None
    start: int | None = None
    end: int | None = None
    lowercase: bool = False
    codec: ImageCodec | None = None

    @property
    def sizes(self) -> DalleSizes:
        """Of both modules."""
        return self.decoder.sizes


def branch_layout(sizes: DalleSizes, name: Callable[[int, str], str]) -> Layout:
    """Where the layers' parameters lie.

    Args:
        name: gives the checkpoint's name of a part (``attention.norm``, ``project``, ``widen``, …) of a layer.
    """
    found: Layout = {}
    for layer in range(sizes.layers):
        ours = {"attention": f"attentions.{layer}", "feed_forward": f"feed_forwards.{layer}"}
        for kind, branch in ours.items():
            found |= same(f"{branch}.norm", name(layer, f"{kind}.norm"))
            if sizes.sandwich:
                found |= same(f"{branch}.norm_behind", name(layer, f"{kind}.norm_behind"))
            if sizes.scaled:
                found[f"{branch}.scale"] = Part((name(layer, f"{kind}.scale"),))
        inner = f"{ours['attention']}.inner"
        joined = name(layer, "queries_keys_values")
        found |= linear(f"{inner}.queries_keys_values", joined, bias=sizes.biased)
        found |= linear(f"{inner}.project", name(layer, "project"))
        found |= linear(f"{ours['feed_forward']}.inner.widen", name(layer, "widen"))
        found |= linear(f"{ours['feed_forward']}.inner.narrow", name(layer, "narrow"))
    return found


def rotary_layout(sizes: DalleSizes) -> Layout:
    """Where the turning of heads lies: among tensors that `with_rotation` has added."""
    return {kind: Part((f"rotary.{kind}",)) for kind in ("cosines", "sines")} if sizes.rotary else {}


def with_rotation(
    tensors: Mapping[str, Tensor], sizes: DalleSizes, angles: Tensor | None
) -> dict[str, Callable[[], Tensor]]:
    """Loaders of a checkpoint's tensors, with cosines and sines of its angles [T + cells, r], or of the usual ones."""
    loaders: dict[str, Callable[[], Tensor]] = {name: partial(tensors.__getitem__, name) for name in tensors}
    if sizes.rotary:
        turn = rotary_angles(sizes) if angles is None else _padded(angles, sizes)
        loaders |= {"rotary.cosines": turn.cos, "rotary.sines": turn.sin}
    return loaders


def _padded(angles: Tensor, sizes: DalleSizes) -> Tensor:
    flat = angles.reshape(-1, angles.shape[-1]).to(torch.float32)
    if flat.shape[1] > sizes.head_width or len(flat) < sizes.positions + sizes.cells - 1:
        what = f"the angles of the checkpoint have the shape {list(angles.shape)}"
        raise VlrtError(what, "check the heads' width and the length of the text")
    return torch.nn.functional.pad(flat, (0, sizes.head_width - flat.shape[1]))


def assemble(
    sizes: DalleSizes, layouts: tuple[Layout, Layout], tensors: Mapping[str, Tensor], where: str
) -> tuple[DalleText, Dalle]:
    """Both modules with a checkpoint's weights; `layouts` of text and transformer.

    Raises:
        VlrtError: a tensor is missing, or of another shape or dtype.
    """
    text = weight_layout.build(lambda: DalleText(sizes), layouts[0], tensors, where)
    return text, weight_layout.build(lambda: Dalle(sizes), layouts[1], tensors, where)


def lazily(loaders: Mapping[str, Callable[[], Tensor]], where: str) -> LazyTensors:
    """Tensors by name, each made when it is asked for."""
    return LazyTensors(loaders, where)


def random_dalle(options: Mapping[str, Any], seed: int) -> DalleModel:
    """Random weights of `seed` in the zoo's sizes: the fields of `DalleSizes`, attentions by name.

    Raises:
        VlrtError: numbers that do not fit each other.
    """
    given = dict(options)
    try:
        grid, begin = (int(given["grid"][0]), int(given["grid"][1])), given.get("begin")
        text, kernel = int(given["text"]) + (begin is not None), int(given.pop("kernel", 5))
        attention = tuple("" if name == "full" else str(name) for name in given.pop("attention"))
        patterns = tuple(
            PatternSpec(name, KINDS[name], text, grid, kernel if name in ("conv", "around") else 1)  # type: ignore[arg-type]
            for name in sorted(set(attention) - {""})
        )
        sizes = DalleSizes(**{**given, "begin": begin, "grid": grid}, attention=attention, patterns=patterns)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise VlrtError(f"the model's sizes do not fit: {error!r}", "correct models.yaml") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = DalleText(sizes).eval(), Dalle(sizes).eval()
    for part in parts:
        part.requires_grad_(False)
    return DalleModel(*parts)


def with_codec(model: DalleModel, codec: ImageCodec) -> DalleModel:
    """The model with another codec of its pictures.

    Raises:
        VlrtError: the codec has another codebook or grid.
    """
    sizes, where = model.sizes, codec.checkpoint.origin if codec.checkpoint else "random"
    if codec.codebook != sizes.codebook:
        what = f"the codec `{where}` has {codec.codebook} codes, the transformer writes {sizes.codebook}"
        raise VlrtError(what, "give the codec that it was trained with by `--codec`")
    return replace(model, codec=codec)
