"""Where a VQGAN's parameters lie: in taming-transformers' state dicts, and in diffusers' `VQModel` folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from vlrt_export.checkpoints import LazyTensors
from vlrt_export.modules.vqgan import VqGanSizes
from vlrt_export.weight_layout import Layout, Part, same


@dataclass(frozen=True)
class Names:
    """How a library names the parts of encoder and decoder.

    Args:
        down, up: a level, by its number; `up` counts from the widest picture.
        blocks, attentions: of a level.
        downsample, upsample: the layer that leads to the next level.
        middle: the innermost blocks and the attention between them.
        norm: before the last layer.
        shortcut: of a residual block whose channels change.
        attention: group norm, query, key, value and output of an attention.
    """

    down: str
    up: str
    blocks: str
    attentions: str
    downsample: str
    upsample: str
    middle: tuple[str, str, str]
    norm: str
    shortcut: str
    attention: tuple[str, str, str, str, str]


TAMING = Names(
    down="down.{}",
    up="up.{}",
    blocks="block",
    attentions="attn",
    downsample="downsample.conv",
    upsample="upsample.conv",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    norm="norm_out",
    shortcut="nin_shortcut",
    attention=("norm", "q", "k", "v", "proj_out"),
)
DIFFUSERS = Names(
    down="down_blocks.{}",
    up="up_blocks.{}",
    blocks="resnets",
    attentions="attentions",
    downsample="downsamplers.0.conv",
    upsample="upsamplers.0.conv",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm="conv_norm_out",
    shortcut="conv_shortcut",
    attention=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
)


def encoder_layout(sizes: VqGanSizes, names: Names, projections: tuple[str, ...]) -> Layout:
    """Of a `VqGanEncoder`; `projections` are the 1x1 layers behind it."""
    inputs = (sizes.channels[0], *sizes.channels[:-1])
    found = same("first", "encoder.conv_in") | _middle("encoder", sizes, names) | _last("encoder", names)
    for number, before in enumerate(inputs):
        theirs = f"encoder.{names.down.format(number)}"
        found |= _level(f"levels.{number}", theirs, names, (before, number, sizes.blocks), sizes)
        if number < len(inputs) - 1:
            found |= same(f"levels.{number}.resample", f"{theirs}.{names.downsample}")
    for number, name in enumerate(projections):
        found |= same(f"projections.{number}", name)
    return found


def decoder_layout(sizes: VqGanSizes, names: Names) -> Layout:
    """Of a `VqGanDecoder`; diffusers counts its levels from the narrowest picture."""
    inputs = (*sizes.channels[1:], sizes.channels[-1])
    found = same("first", "decoder.conv_in") | _middle("decoder", sizes, names) | _last("decoder", names)
    found |= same("projection", "post_quant_conv")
    for number, before in enumerate(inputs):
        counted = len(inputs) - 1 - number if names is DIFFUSERS else number
        theirs = f"decoder.{names.up.format(counted)}"
        found |= _level(f"levels.{number}", theirs, names, (before, number, sizes.blocks + 1), sizes)
        if number:
            found |= same(f"levels.{number}.resample", f"{theirs}.{names.upsample}")
    return found


def as_convolutions(tensors: Mapping[str, Tensor], where: str) -> LazyTensors:
    """Tensors with the matrices of linear attention layers as the 1x1 convolutions that they are."""
    linear = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")

    def load(name: str) -> Tensor:
        value = tensors[name]
        return value[:, :, None, None] if name.endswith(linear) and value.ndim == 2 else value

    return LazyTensors({name: partial(load, name) for name in tensors}, where)


def _last(half: str, names: Names) -> Layout:
    return same("norm", f"{half}.{names.norm}") | same("last", f"{half}.conv_out")


def _middle(half: str, sizes: VqGanSizes, names: Names) -> Layout:
    first, attention, second = (f"{half}.{name}" for name in names.middle)
    found = _block("middle.first", first, False, names) | _block("middle.second", second, False, names)
    return found | (_attention("middle.attention", attention, names) if sizes.middle_attention else {})


def _level(ours: str, theirs: str, names: Names, shape: tuple[int, int, int], sizes: VqGanSizes) -> Layout:
    """Of `shape`: channels before it, its number, its blocks."""
    before, number, blocks = shape
    found: Layout = {}
    for block in range(blocks):
        widened = block == 0 and before != sizes.channels[number]
        found |= _block(f"{ours}.blocks.{block}", f"{theirs}.{names.blocks}.{block}", widened, names)
        if number in sizes.attended:
            found |= _attention(f"{ours}.attentions.{block}", f"{theirs}.{names.attentions}.{block}", names)
    return found


def _block(ours: str, theirs: str, widened: bool, names: Names) -> Layout:
    found: Layout = {}
    for part in ("norm1", "conv1", "norm2", "conv2"):
        found |= same(f"{ours}.{part}", f"{theirs}.{part}")
    return found | (same(f"{ours}.shortcut", f"{theirs}.{names.shortcut}") if widened else {})


def _attention(ours: str, theirs: str, names: Names) -> Layout:
    norm, query, key, value, output = (f"{theirs}.{part}" for part in names.attention)
    joined = {
        f"{ours}.qkv.{kind}": Part((f"{query}.{kind}", f"{key}.{kind}", f"{value}.{kind}"))
        for kind in ("weight", "bias")
    }
    return same(f"{ours}.norm", norm) | joined | same(f"{ours}.output", output)
