"""Checkpoints of DALL-E's discrete VAE: the published `encoder.pkl` and `decoder.pkl`, or their state dicts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint, LazyTensors, open_checkpoint
from vlrt_export.image_codec import ImageCodec, under
from vlrt_export.modules.dvae import DvaeDecoder, DvaeEncoder, DvaeSizes
from vlrt_export.modules.image_codec import LOGIT_LAPLACE, ImageDetokenizer, ImageTokenizer
from vlrt_export.weight_layout import Layout, Part

_FACTOR, _SIDE = 8, 256
_ENDINGS = ("safetensors", "pkl", "pt", "pth", "bin")
_HINT = "give the folder with OpenAI's `encoder.pkl` and `decoder.pkl`, or a state dict of both under those prefixes"
_PREFIXES = (("encoder.", "decoder."), ("enc.", "dec."))
"""Of a state dict with both halves; the second as DALLE-pytorch wraps them."""


def open_halves(folder: Path) -> Checkpoint | None:
    """The files ``encoder`` and ``decoder`` of a folder as one checkpoint; `None` where it lacks them."""
    found = [_half(folder, name) for name in ("encoder", "decoder")]
    if None in found:
        return None
    parts = {path.stem: open_checkpoint(path) for path in found if path is not None}
    loaders = {
        f"{half}.{name}": partial(part.tensors.__getitem__, name)
        for half, part in parts.items()
        for name in part.tensors
    }
    origin = folder.resolve().name
    files = tuple(path for path in found if path is not None)
    return Checkpoint(LazyTensors(loaders, origin), {}, folder, files, origin, layout=parts["encoder"].layout)


def is_dvae(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the package `DALL-E`."""
    return any(f"{encoder}blocks.input.w" in tensors for encoder, _ in _PREFIXES)


def load_dvae(checkpoint: Checkpoint) -> ImageCodec:
    """Reads a discrete VAE; its sizes come from its shapes.

    Raises:
        VlrtError: another model; a tensor missing, left over, of another shape or dtype.
    """
    tensors, where = checkpoint.tensors, checkpoint.origin
    prefix = next((pair for pair in _PREFIXES if f"{pair[0]}blocks.input.w" in tensors), None)
    if prefix is None or f"{prefix[1]}blocks.input.w" not in tensors:
        raise VlrtError(f"`{where}` lacks an encoder or decoder of DALL-E's discrete VAE", _HINT)
    halves = [under(tensors, f"{half}blocks.", where) for half in prefix]
    sizes = _sizes(halves[0], halves[1], where)
    layouts = encoder_layout(sizes), decoder_layout(sizes)
    encoder = weight_layout.build(lambda: DvaeEncoder(sizes), layouts[0], halves[0], where)
    decoder = weight_layout.build(lambda: DvaeDecoder(sizes), layouts[1], halves[1], where)
    for half, layout in zip(halves, layouts):
        weight_layout.check_surplus(half, weight_layout.names_of(layout) | {"input.w"}, r"^$", where)
    codebook = halves[1]["input.w"].to(torch.float32)[:, :, 0, 0].t().contiguous()
    return ImageCodec(
        "dvae",
        ImageTokenizer(encoder, LOGIT_LAPLACE),
        ImageDetokenizer(codebook, decoder, LOGIT_LAPLACE),
        _FACTOR,
        (_SIDE // _FACTOR, _SIDE // _FACTOR),
        checkpoint,
    )


def random_dvae(options: Mapping[str, Any], seed: int) -> ImageCodec:
    """A discrete VAE of the options' sizes with random weights of `seed`.

    Raises:
        VlrtError: sizes that cannot be meant.
    """
    try:
        sizes = DvaeSizes(**options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, decoder = DvaeEncoder(sizes).eval(), DvaeDecoder(sizes).eval()
            codebook = torch.randn(sizes.codebook, sizes.first)
    except (TypeError, ValueError) as error:
        raise VlrtError(f"the model's sizes do not fit: {error}", "correct models.yaml") from None
    for part in (encoder, decoder):
        part.requires_grad_(False)
    tokenizer, detokenizer = ImageTokenizer(encoder, LOGIT_LAPLACE), ImageDetokenizer(codebook, decoder, LOGIT_LAPLACE)
    return ImageCodec("dvae", tokenizer, detokenizer, _FACTOR, (_SIDE // _FACTOR, _SIDE // _FACTOR))


def _half(folder: Path, name: str) -> Path | None:
    places = (folder / f"{name}.{ending}" for ending in _ENDINGS)
    return next((path for path in places if path.is_file()), None)


def _sizes(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor], where: str) -> DvaeSizes:
    try:
        first, codebook = decoder["input.w"].shape[:2]
        widest = encoder["input.w"].shape[0]
        painted = decoder["output.conv.w"].shape[1]
        if encoder["output.conv.w"].shape[0] != codebook:
            raise ValueError(f"{encoder['output.conv.w'].shape[0]} codes in the encoder, {codebook} in the decoder")
        names = [re.match(r"group_1\.block_(\d+)\.", name) for name in encoder]
        return DvaeSizes(widest, painted, first, len({m.group(1) for m in names if m}), codebook)
    except (KeyError, ValueError, IndexError) as error:
        raise VlrtError(f"`{where}` is not DALL-E's discrete VAE: {error}", _HINT) from None


def _conv(target: str, source: str) -> Layout:
    return {f"{target}.weight": Part((f"{source}.w",)), f"{target}.bias": Part((f"{source}.b",))}


def encoder_layout(sizes: DvaeSizes) -> Layout:
    """Of a `DvaeEncoder`; names begin behind ``blocks.``."""
    return _conv("first", "input") | _conv("last", "output.conv") | _groups_layout(sizes, sizes.encoder, range(4))


def decoder_layout(sizes: DvaeSizes) -> Layout:
    """Of a `DvaeDecoder`, whose first layer's kernel is the codebook."""
    first = {"bias": Part(("input.b",))}
    return first | _conv("last", "output.conv") | _groups_layout(sizes, sizes.first, range(3, -1, -1))


def _groups_layout(sizes: DvaeSizes, before: int, doublings: range) -> Layout:
    """Blocks group by group; a group's first block has a layer beside its path where the channels change."""
    encodes = doublings.step > 0
    found: Layout = {}
    for group, doubling in enumerate(doublings):
        after = (sizes.encoder if encodes else sizes.decoder) * 2**doubling
        for block in range(sizes.blocks):
            ours, theirs = f"groups.{group}.{block}", f"group_{group + 1}.block_{block + 1}"
            for conv in range(4):
                found |= _conv(f"{ours}.convs.{conv}", f"{theirs}.res_path.conv_{conv + 1}")
            if before != after:
                found |= _conv(f"{ours}.skip", f"{theirs}.id_path")
            before = after
    return found
