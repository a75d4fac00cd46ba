"""VQGAN checkpoints: taming-transformers (nearest code, or Gumbel's logits), diffusers, and min-dalle's detokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.image_codec import ImageCodec
from vlrt_export.modules.image_codec import SIGNED, ImageDetokenizer, ImageTokenizer, PixelRange
from vlrt_export.modules.vqgan import VqGanDecoder, VqGanEncoder, VqGanSizes
from vlrt_export.vqgan_layout import DIFFUSERS, TAMING, Names, as_convolutions, decoder_layout, encoder_layout

_NEAREST, _GUMBEL, _LOGITS = "quantize.embedding.weight", "quantize.embed.weight", "quantize.proj"
_DETOKER = "embedding.weight"
_SIDE = 256
_IGNORED = r"^(loss|discriminator|perceptual_loss)\.|^colorize$|^quantize\.(used|usage)"
"""Of training, left in taming's checkpoints."""

_CLASS = "VQModel"


@dataclass(frozen=True)
class _Kind:
    """What the names of a checkpoint tell.

    Args:
        names: those of its library.
        codebook: the tensor with the codes' vectors.
        projections: the 1x1 layers behind the encoder.
        pixels: range of both networks.
    """

    names: Names
    codebook: str
    projections: tuple[str, ...]
    pixels: PixelRange = SIGNED


def is_vqgan(checkpoint: Checkpoint) -> bool:
    """Whether the names are those of one of the layouts."""
    return _kind(checkpoint.tensors) is not None


def load_vqgan(checkpoint: Checkpoint, side: int | None = None) -> ImageCodec:
    """Reads a VQGAN; all but the norms' groups and the pictures' size comes from its shapes.

    Args:
        side: of the pictures it was trained on, in pixels; that of the configuration beside it, or 256, where `None`.

    Raises:
        VlrtError: another model; a tensor missing, left over, of another shape or dtype; a kind of norm or activation
            that is not known.
    """
    kind, where = _kind(checkpoint.tensors), checkpoint.origin
    if kind is None:
        what = f"`{where}` is not a VQGAN in a layout we know"
        raise VlrtError(what, "taming-transformers' checkpoints, diffusers' `VQModel` folders and detoker.pt are known")
    _check_config(checkpoint)
    tensors = as_convolutions(checkpoint.tensors, where)
    half = _decoder_sizes(tensors, kind, checkpoint.config, where)
    layout = decoder_layout(half, kind.names)
    codebook = tensors[kind.codebook].to(torch.float32)
    decoder = weight_layout.build(lambda: VqGanDecoder(half, codebook.shape[1]), layout, tensors, where)
    known = weight_layout.names_of(layout) | {kind.codebook}
    tokenizer = None
    if kind.projections:
        sizes = _encoder_sizes(tensors, kind, half, where)
        outputs = tuple(tensors[f"{name}.weight"].shape[0] for name in kind.projections)
        inner = encoder_layout(sizes, kind.names, kind.projections)
        encoder = weight_layout.build(lambda: VqGanEncoder(sizes, outputs), inner, tensors, where)
        tokenizer = ImageTokenizer(encoder, kind.pixels, codebook if kind.codebook == _NEAREST else None)
        known |= weight_layout.names_of(inner)
    weight_layout.check_surplus(tensors, known, _IGNORED, where)
    rows = _rows(side or _side(checkpoint), half.factor)
    detokenizer = ImageDetokenizer(codebook, decoder, kind.pixels)
    return ImageCodec("vqgan", tokenizer, detokenizer, half.factor, (rows, rows), checkpoint, half.most_codes)


def random_vqgan(options: Mapping[str, Any], seed: int) -> ImageCodec:
    """A VQGAN of the options' sizes (`channels`, `blocks`, `attended`, `latent`, `groups`, `codebook`, `width`, `side`;
    f16 with 16,384 codes where not given) with random weights of `seed`.

    Raises:
        VlrtError: sizes that cannot be meant.
    """
    given = {"codebook": 16384, "width": 256, "side": _SIDE} | dict(options)
    codes, width, side = (int(given.pop(name)) for name in ("codebook", "width", "side"))
    shape = {"channels": (128, 128, 256, 256, 512), "blocks": 2, "attended": (4,), "latent": 256} | given
    try:
        sizes = _given_sizes(shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, decoder = VqGanEncoder(sizes, (width,)).eval(), VqGanDecoder(sizes, width).eval()
            codebook = 0.1 * torch.randn(codes, width)
    except (TypeError, ValueError) as error:
        raise VlrtError(f"the model's sizes do not fit: {error}", "correct models.yaml") from None
    for part in (encoder, decoder):
        part.requires_grad_(False)
    rows = _rows(side, sizes.factor)
    tokenizer, detokenizer = ImageTokenizer(encoder, SIGNED, codebook), ImageDetokenizer(codebook, decoder, SIGNED)
    return ImageCodec("vqgan", tokenizer, detokenizer, sizes.factor, (rows, rows), most_codes=sizes.most_codes)


def _given_sizes(shape: Mapping[str, Any]) -> VqGanSizes:
    lists: dict[str, Any] = {name: tuple(shape[name]) for name in ("channels", "attended")}
    return VqGanSizes(**{**shape, **lists})


def _kind(tensors: Mapping[str, Tensor]) -> _Kind | None:
    if _NEAREST in tensors and "encoder.down_blocks.0.resnets.0.conv1.weight" in tensors:
        return _Kind(DIFFUSERS, _NEAREST, ("quant_conv",))
    if _NEAREST in tensors and "encoder.down.0.block.0.conv1.weight" in tensors:
        return _Kind(TAMING, _NEAREST, ("quant_conv",))
    if _GUMBEL in tensors and f"{_LOGITS}.weight" in tensors:
        # The reference draws codes by Gumbel noise even then; these are the likeliest ones.
        return _Kind(TAMING, _GUMBEL, ("quant_conv", _LOGITS))
    if _DETOKER in tensors and "decoder.up.0.block.0.conv1.weight" in tensors:
        return _Kind(TAMING, _DETOKER, (), PixelRange())
    return None


def _check_config(checkpoint: Checkpoint) -> None:
    """Refuses what a `VQModel` may be and no module here is."""
    config, where = checkpoint.config, checkpoint.origin
    name = config.get("_class_name", _CLASS)
    if name != _CLASS:
        raise VlrtError(f"`{where}` is a `{name}`, expected a `{_CLASS}`", "give the folder of the VQGAN itself")
    for key, expected in (("norm_type", "group"), ("act_fn", "silu")):
        if config.get(key, expected) != expected:
            what = f"`{where}` has {key} `{config[key]}`, only `{expected}` is known"
            raise VlrtError(what, "another checkpoint is needed; `vlrt models` names some")


def _decoder_sizes(tensors: Mapping[str, Tensor], kind: _Kind, config: Mapping[str, Any], where: str) -> VqGanSizes:
    levels = _levels(tensors, f"decoder.{kind.names.up}", kind)
    if kind.names is DIFFUSERS:
        levels = levels[::-1]
    detoker = kind.codebook == _DETOKER
    try:
        return VqGanSizes(
            channels=tuple(channels for channels, _, _ in levels),
            blocks=levels[0][1] - 1,
            attended=tuple(number for number, level in enumerate(levels) if level[2]),
            latent=tensors["decoder.conv_in.weight"].shape[1],
            groups=int(config.get("norm_num_groups", 32)),
            epsilon=1e-5 if detoker else 1e-6,
            middle_attention=f"decoder.{kind.names.middle[1]}.{kind.names.attention[0]}.weight" in tensors,
        )
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise VlrtError(f"the decoder of `{where}` is not a VQGAN's: {error}", "is the file whole?") from None


def _encoder_sizes(tensors: Mapping[str, Tensor], kind: _Kind, half: VqGanSizes, where: str) -> VqGanSizes:
    levels = _levels(tensors, f"encoder.{kind.names.down}", kind)
    try:
        return replace(
            half,
            channels=tuple(channels for channels, _, _ in levels),
            blocks=levels[0][1],
            attended=tuple(number for number, level in enumerate(levels) if level[2]),
            latent=tensors["encoder.conv_out.weight"].shape[0],
        )
    except (KeyError, IndexError, ValueError) as error:
        raise VlrtError(f"the encoder of `{where}` is not a VQGAN's: {error}", "is the file whole?") from None


def _levels(tensors: Mapping[str, Tensor], pattern: str, kind: _Kind) -> list[tuple[int, int, bool]]:
    """Channels, blocks and whether there is attention, level by level."""
    found: list[tuple[int, int, bool]] = []
    while f"{pattern.format(len(found))}.{kind.names.blocks}.0.conv1.weight" in tensors:
        level = pattern.format(len(found))
        block = re.compile(rf"{re.escape(level)}\.{kind.names.blocks}\.(\d+)\.")
        blocks = {match.group(1) for name in tensors if (match := block.match(name))}
        attended = any(name.startswith(f"{level}.{kind.names.attentions}.") for name in tensors)
        found.append((tensors[f"{level}.{kind.names.blocks}.0.conv1.weight"].shape[0], len(blocks), attended))
    return found


def _rows(side: int, factor: int) -> int:
    if side < factor or side % factor:
        raise VlrtError(f"pictures of {side} pixels are no whole codes of {factor}", "give `side` as a multiple")
    return side // factor


def _side(checkpoint: Checkpoint) -> int:
    """From taming's configuration beside the weights, or where its training leaves it."""
    import yaml

    folder = checkpoint.folder or (checkpoint.files[0].parent if checkpoint.files else None)
    if folder is None:
        return _SIDE
    for path in (*sorted(folder.glob("*.yaml")), *sorted(Path(folder, "..", "configs").glob("*-project.yaml"))):
        try:
            said = yaml.safe_load(path.read_text("utf-8"))
            return int(said["model"]["params"]["ddconfig"]["resolution"])
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            continue
    return _SIDE
