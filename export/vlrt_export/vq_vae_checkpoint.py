"""VQ-VAE checkpoints in the layout of the development data: one state dict, every size in its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.image_codec import ImageCodec
from vlrt_export.modules.image_codec import CENTRED, ImageDetokenizer, ImageTokenizer
from vlrt_export.modules.vq_vae import VqVaeDecoder, VqVaeEncoder, VqVaeSizes
from vlrt_export.weight_layout import Layout, Part, same

_CODEBOOK, _FACTOR = "codebook.weight", 4


def is_vq_vae(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of this layout."""
    return _CODEBOOK in tensors and "encoder.conv_1.weight" in tensors


def load_vq_vae(checkpoint: Checkpoint) -> ImageCodec:
    """Reads a VQ-VAE; its sizes come from its shapes.

    Raises:
        VlrtError: another model; a tensor missing, left over, of another shape or dtype.
    """
    tensors, where = checkpoint.tensors, checkpoint.origin
    sizes = _sizes(tensors, where)
    encoder_layout, decoder_layout = _encoder_layout(sizes), _decoder_layout(sizes)
    encoder = weight_layout.build(lambda: VqVaeEncoder(sizes), encoder_layout, tensors, where)
    decoder = weight_layout.build(lambda: VqVaeDecoder(sizes), decoder_layout, tensors, where)
    known = weight_layout.names_of(encoder_layout, decoder_layout) | {_CODEBOOK}
    weight_layout.check_surplus(tensors, known, r"^$", where)
    codebook = tensors[_CODEBOOK].to(torch.float32)
    return ImageCodec(
        "vq-vae",
        ImageTokenizer(encoder, CENTRED, codebook),
        ImageDetokenizer(codebook, decoder, CENTRED),
        _FACTOR,
        checkpoint=checkpoint,
        reference=lambda pixels: plain_vq_vae(tensors, pixels),
    )


def random_vq_vae(options: Mapping[str, Any], seed: int) -> ImageCodec:
    """A VQ-VAE of the options' sizes with random weights of `seed`.

    Raises:
        VlrtError: sizes that cannot be meant.
    """
    try:
        sizes = VqVaeSizes(**options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, decoder = VqVaeEncoder(sizes).eval(), VqVaeDecoder(sizes).eval()
            codebook = 0.1 * torch.randn(sizes.codebook, sizes.width)
    except (TypeError, ValueError, RuntimeError) as error:
        raise VlrtError(f"the model's sizes do not fit: {error}", "correct models.yaml") from None
    for part in (encoder, decoder):
        part.requires_grad_(False)
    tokenizer, detokenizer = (
        ImageTokenizer(encoder, CENTRED, codebook),
        ImageDetokenizer(codebook, decoder, CENTRED),
    )
    return ImageCodec("vq-vae", tokenizer, detokenizer, _FACTOR)


def plain_vq_vae(tensors: Mapping[str, Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction of pixels [N, 3, H, W] in [0, 1], with functions of torch alone.

    Source: the model card beside the weights; swasun/VQ-VAE-Images, whose full distances these are.
    """
    x = F.relu(_conv(tensors, "encoder.conv_1", pixels - 0.5, stride=2, padding=1))
    x = F.relu(_conv(tensors, "encoder.conv_2", x, stride=2, padding=1))
    x = _residual(tensors, "encoder", _conv(tensors, "encoder.conv_3", x, padding=1))
    z = _conv(tensors, "pre_quant", x).permute(0, 2, 3, 1)
    book, flat = tensors[_CODEBOOK], z.flatten(0, 2)
    distances = flat.square().sum(1, keepdim=True) + book.square().sum(1) - 2 * flat @ book.t()
    codes = distances.argmin(1).reshape(z.shape[:3])
    x = _conv(tensors, "decoder.conv_1", book[codes].permute(0, 3, 1, 2), padding=1)
    x = _residual(tensors, "decoder", x)
    for name, last in (("decoder.conv_trans_1", False), ("decoder.conv_trans_2", True)):
        x = F.conv_transpose2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride=2, padding=1)
        x = x if last else F.relu(x)
    return codes, (x + 0.5).clamp(0, 1)


def _conv(tensors: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), stride, padding)


def _residual(tensors: Mapping[str, Tensor], half: str, x: Tensor) -> Tensor:
    number = 0
    while f"{half}.residual.{number}.conv_3x3.weight" in tensors:
        x = F.relu(x)
        inner = _conv(tensors, f"{half}.residual.{number}.conv_3x3", x, padding=1)
        x = x + _conv(tensors, f"{half}.residual.{number}.conv_1x1", F.relu(inner))
        number += 1
    return F.relu(x)


def _sizes(tensors: Mapping[str, Tensor], where: str) -> VqVaeSizes:
    try:
        codebook, width = tensors[_CODEBOOK].shape
        hidden = tensors["encoder.conv_2.weight"].shape[0]
        residual = tensors["encoder.residual.0.conv_3x3.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        what = f"`{where}` is not a VQ-VAE in the layout we know: {error}"
        raise VlrtError(what, "expected `codebook.weight`, `encoder.conv_1.weight`, …") from None
    blocks = len({name.split(".")[2] for name in tensors if name.startswith("encoder.residual.")})
    return VqVaeSizes(hidden, residual, blocks, width, codebook)


def _encoder_layout(sizes: VqVaeSizes) -> Layout:
    found = same("pre_quant", "pre_quant")
    for number in (1, 2, 3):
        found |= same(f"conv_{number}", f"encoder.conv_{number}")
    return found | _stack_layout("encoder", sizes)


def _decoder_layout(sizes: VqVaeSizes) -> Layout:
    found: Layout = {}
    for name in ("conv_1", "conv_trans_1", "conv_trans_2"):
        found |= same(name, f"decoder.{name}")
    return found | _stack_layout("decoder", sizes)


def _stack_layout(half: str, sizes: VqVaeSizes) -> Layout:
    return {
        f"residual.{number}.{conv}.weight": Part((f"{half}.residual.{number}.{conv}.weight",))
        for number in range(sizes.blocks)
        for conv in ("conv_3x3", "conv_1x1")
    }
