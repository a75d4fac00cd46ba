"""Checkpoints of DALLE-pytorch's own discrete VAE: its `vae.pt`, or what a `dalle.pt` holds of it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.image_codec import ImageCodec, under
from vlrt_export.modules.discrete_vae import DiscreteVaeDecoder, DiscreteVaeEncoder, DiscreteVaeSizes
from vlrt_export.modules.image_codec import SIGNED, ImageDetokenizer, ImageTokenizer
from vlrt_export.weight_layout import Layout, same

_CODEBOOK, _FIRST, _WRAPPED = "codebook.weight", "encoder.0.0.weight", "weights."
_SIDE = 256


def is_discrete_vae(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of DALLE-pytorch's `DiscreteVAE`, or of a file that holds its weights."""
    return any({f"{prefix}{_CODEBOOK}", f"{prefix}{_FIRST}"} <= set(tensors) for prefix in ("", _WRAPPED))


def load_discrete_vae(checkpoint: Checkpoint, side: int | None = None) -> ImageCodec:
    """Reads a discrete VAE; its sizes come from its shapes, its pixels lie between −1 and 1, the library's default.

    Args:
        side: of the pictures it was trained on, in pixels; the library's 256 where `None`.

    Raises:
        VlrtError: another model; a tensor missing, left over, of another shape or dtype.
    """
    where = checkpoint.origin
    wrapped = under(checkpoint.tensors, _WRAPPED, where)
    tensors: Mapping[str, Tensor] = wrapped if _CODEBOOK in wrapped else checkpoint.tensors
    sizes = _sizes(tensors, where)
    layouts = _encoder_layout(sizes), _decoder_layout(sizes)
    encoder = weight_layout.build(lambda: DiscreteVaeEncoder(sizes), layouts[0], tensors, where)
    decoder = weight_layout.build(lambda: DiscreteVaeDecoder(sizes), layouts[1], tensors, where)
    weight_layout.check_surplus(tensors, weight_layout.names_of(*layouts) | {_CODEBOOK}, r"^$", where)
    rows = (side or _SIDE) // sizes.factor
    codebook = tensors[_CODEBOOK].to(torch.float32)
    return ImageCodec(
        "dvae",
        ImageTokenizer(encoder, SIGNED),
        ImageDetokenizer(codebook, decoder, SIGNED),
        sizes.factor,
        (rows, rows),
        checkpoint,
    )


def _sizes(tensors: Mapping[str, Tensor], where: str) -> DiscreteVaeSizes:
    try:
        codebook, width = tensors[_CODEBOOK].shape
        layers = _count(tensors, r"encoder\.(\d+)\.0\.weight")
        blocks = _count(tensors, r"encoder\.(\d+)\.net\.0\.weight")
        return DiscreteVaeSizes(tensors[_FIRST].shape[0], layers, blocks, width, codebook)
    except (KeyError, ValueError, IndexError) as error:
        what = f"`{where}` is not a discrete VAE of DALLE-pytorch: {error}"
        raise VlrtError(what, "its `vae.pt` is known") from None


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return sum(bool(re.fullmatch(pattern, name)) for name in tensors)


def _encoder_layout(sizes: DiscreteVaeSizes) -> Layout:
    """Its layers are numbered from first to last, whatever they are."""
    found: Layout = {}
    for number in range(sizes.layers):
        found |= same(f"shrink.{number}", f"encoder.{number}.0")
    found |= _blocks_layout("encoder", sizes.layers, sizes.blocks)
    return found | same("last", f"encoder.{sizes.layers + sizes.blocks}")


def _decoder_layout(sizes: DiscreteVaeSizes) -> Layout:
    before = sizes.blocks + 1 if sizes.blocks else 0
    found = same("first", "decoder.0") | _blocks_layout("decoder", 1, sizes.blocks) if sizes.blocks else {}
    for number in range(sizes.layers):
        found |= same(f"grow.{number}", f"decoder.{before + number}.0")
    return found | same("last", f"decoder.{before + sizes.layers}")


def _blocks_layout(half: str, first: int, blocks: int) -> Layout:
    found: Layout = {}
    for number in range(blocks):
        for conv in range(3):
            found |= same(f"blocks.{number}.conv{conv + 1}", f"{half}.{first + number}.net.{2 * conv}")
    return found
