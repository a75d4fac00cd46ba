"""ClipCap checkpoints in their original layout: one state dict with the mapper and the language model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.modules.clipcap_mapper import MapperSizes, MlpMapper, TransformerMapper
from vlrt_export.modules.gpt2 import DecoderSizes, Gpt2
from vlrt_export.text_decoders import gpt2_layout
from vlrt_export.weight_layout import Layout, Part, linear, same

_MAPPER, _GPT = "clip_project.", "gpt.transformer."
_WORDS, _PLACES, _HEAD = f"{_GPT}wte.weight", f"{_GPT}wpe.weight", "gpt.lm_head.weight"
_HEAD_WIDTH = 64
"""Of an attention head in every size of GPT-2; a state dict does not say it."""

_BUFFERS = r"attn\.(masked_)?bias$"


@dataclass(frozen=True)
class ClipCap:
    """Mapper and language model in eval mode, and where their parameters lie in a checkpoint."""

    mapper: MlpMapper | TransformerMapper
    decoder: Gpt2
    layouts: tuple[Layout, Layout]
    sizes: MapperSizes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", self.mapper.sizes)

    def weights(self) -> dict[str, Tensor]:
        """Everything under the checkpoint's names."""
        parts = (self.mapper, self.decoder)
        return {
            k: v for part, layout in zip(parts, self.layouts) for k, v in weight_layout.invert(part, layout).items()
        }


def load_clipcap(checkpoint: Checkpoint, heads: int | None) -> ClipCap:
    """Reads a checkpoint of rmokady/CLIP_prefix_caption; every size comes from its shapes.

    Args:
        heads: attention heads of the language model; its width over 64 where `None`.

    Raises:
        VlrtError: another model; a tensor missing, left over, of another shape or dtype.
    """
    tensors, where = checkpoint.tensors, checkpoint.origin
    for name in (_WORDS, _PLACES):
        if name not in tensors:
            shown = ", ".join(f"`{n}`" for n in list(tensors)[:3])
            what = f"`{where}` is not ClipCap: it lacks `{name}`; its tensors are {shown}, …"
            raise VlrtError(what, "`vlrt models` names the other families")
    try:
        said, mapped = _decoder_sizes(tensors, heads), _mapper_sizes(tensors, where)
    except (ValueError, TypeError) as error:
        raise VlrtError(f"the shapes of `{where}` are not ClipCap's: {error}", "is the file whole?") from None
    tied = _HEAD not in tensors or torch.equal(tensors[_HEAD], tensors[_WORDS])
    layouts = (_mapper_layout(mapped), _decoder_layout(said, tied))
    mapper = weight_layout.build(lambda: _mapper(mapped), layouts[0], tensors, where)
    decoder = weight_layout.build(lambda: Gpt2(said, tied), layouts[1], tensors, where)
    known = weight_layout.names_of(*layouts) | {_HEAD}
    weight_layout.check_surplus(tensors, known, _BUFFERS, where)
    return ClipCap(mapper, decoder, layouts)


def random_clipcap(options: Mapping[str, Any], features: int, seed: int) -> ClipCap:
    """A model of the zoo's sizes (GPT-2's and the paper's where it names none) with random weights of `seed`.

    Raises:
        VlrtError: numbers that do not fit each other.
    """
    gpt = {"vocabulary": 50257, "positions": 1024, "width": 768, "layers": 12} | dict(options.get("gpt2") or {})
    given = dict(options.get("mapper") or {})
    try:
        width = gpt["width"]
        heads = gpt.get("heads", width // _HEAD_WIDTH)
        said = _gpt2_sizes(gpt["vocabulary"], gpt["positions"], width, gpt["layers"], heads, 4 * width)
        mapped = MapperSizes(
            features, given.get("prefix", 10), width, given.get("clip_length", 0), given.get("layers", 0)
        )
    except (ValueError, TypeError) as error:
        raise VlrtError(f"the model's options do not fit: {error}", "correct models.yaml") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mapper, decoder = _mapper(mapped).eval(), Gpt2(said).eval()
    for part in (mapper, decoder):
        part.requires_grad_(False)
    return ClipCap(mapper, decoder, (_mapper_layout(mapped), _decoder_layout(said, tied=True)))


def _decoder_sizes(tensors: Mapping[str, Tensor], heads: int | None) -> DecoderSizes:
    vocabulary, width = tensors[_WORDS].shape
    layers = _count(tensors, rf"{re.escape(_GPT)}h\.(\d+)\.")
    inner = f"{_GPT}h.0.mlp.c_fc.weight"
    feed_forward = tensors[inner].shape[1] if inner in tensors else 4 * width
    return _gpt2_sizes(vocabulary, len(tensors[_PLACES]), width, layers, heads or width // _HEAD_WIDTH, feed_forward)


def _gpt2_sizes(vocabulary: int, positions: int, width: int, layers: int, heads: int, inner: int) -> DecoderSizes:
    return DecoderSizes(vocabulary, positions, width, layers, heads, inner, activation="gelu_new")


def _mapper_sizes(tensors: Mapping[str, Tensor], where: str) -> MapperSizes:
    width = tensors[_WORDS].shape[1]
    last, constants = f"{_MAPPER}model.2.weight", f"{_MAPPER}prefix_const"
    if last in tensors and f"{_MAPPER}model.0.weight" in tensors:
        features = tensors[f"{_MAPPER}model.0.weight"].shape[1]
        return MapperSizes(features, len(tensors[last]) // width, width)
    if constants in tensors and f"{_MAPPER}linear.weight" in tensors:
        spread, features = tensors[f"{_MAPPER}linear.weight"].shape
        layers = _count(tensors, rf"{re.escape(_MAPPER)}transformer\.layers\.(\d+)\.")
        return MapperSizes(features, len(tensors[constants]), width, spread // width, layers)
    what = f"`{where}` has no mapper: neither `{last}` nor `{constants}` with `{_MAPPER}linear.weight`"
    raise VlrtError(what, "MLP and transformer mappers of rmokady/CLIP_prefix_caption are known")


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match.group(1) for name in tensors if (match := re.match(pattern, name))})


def _mapper(sizes: MapperSizes) -> MlpMapper | TransformerMapper:
    return TransformerMapper(sizes) if sizes.layers else MlpMapper(sizes)


def _mapper_layout(sizes: MapperSizes) -> Layout:
    if not sizes.layers:
        return linear("first", f"{_MAPPER}model.0") | linear("second", f"{_MAPPER}model.2")
    found = linear("linear", f"{_MAPPER}linear") | {"constants": Part((f"{_MAPPER}prefix_const",))}
    for number in range(sizes.layers):
        ours, theirs = f"layers.{number}", f"{_MAPPER}transformer.layers.{number}"
        found |= same(f"{ours}.norm1", f"{theirs}.norm1") | same(f"{ours}.norm2", f"{theirs}.norm2")
        found |= linear(f"{ours}.attn.queries", f"{theirs}.attn.to_queries", bias=False)
        found |= linear(f"{ours}.attn.keys_values", f"{theirs}.attn.to_keys_values", bias=False)
        found |= linear(f"{ours}.attn.project", f"{theirs}.attn.project")
        found |= linear(f"{ours}.fc1", f"{theirs}.mlp.fc1") | linear(f"{ours}.fc2", f"{theirs}.mlp.fc2")
    return found


def _decoder_layout(sizes: DecoderSizes, tied: bool) -> Layout:
    return gpt2_layout(_GPT, sizes.layers, cross=False) | {"lm_head.weight": Part((_WORDS if tied else _HEAD,))}


def check_features(model: ClipCap, dimension: int) -> None:
    """Raises `VlrtError` where the mapper was trained on another CLIP's vectors."""
    if model.sizes.features != dimension:
        what = f"the mapper reads vectors of {model.sizes.features}, this CLIP gives {dimension}"
        raise VlrtError(what, "give the CLIP it was trained with by `--clip`")
