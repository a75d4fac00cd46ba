"""DALL·E mini's checkpoints in the layout of kuprel/min-dalle: encoder, decoder and detokenizer, a file each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export import hub, weight_layout
from vlrt_export.checkpoints import Checkpoint, LazyTensors, open_checkpoint
from vlrt_export.modules.dalle_mini import DalleMiniDecoder, DalleMiniEncoder, DalleMiniSizes
from vlrt_export.weight_layout import Layout, linear, same

GRID = (16, 16)
CODES = 2**14
START = CODES - 1
"""The reference begins every picture with its last code, though the decoder has an id beyond the codes for that."""

PAD = 1
_HEAD_WIDTH = 64
"""Of an attention head in both published sizes; the tensors do not say it."""


@dataclass(frozen=True)
class DalleMini:
    """Both halves in eval mode, and where their parameters lie in their files."""

    encoder: DalleMiniEncoder
    decoder: DalleMiniDecoder
    checkpoint: Checkpoint | None = None

    def weights(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Encoder's and decoder's, under the names of their files."""
        layouts = half_layout(self.encoder.sizes), half_layout(self.decoder.layout)
        return weight_layout.invert(self.encoder, layouts[0]), weight_layout.invert(self.decoder, layouts[1])


@dataclass(frozen=True)
class Files:
    """Where the parts of a checkpoint lie.

    Args:
        encoder, decoder: opened files.
        detokenizer: the file of the codes' pictures, or `None` where it is not beside them.
        suffix: of all names but the detokenizer's, ``_mini`` in the published repository of both sizes.
    """

    encoder: Checkpoint
    decoder: Checkpoint
    detokenizer: Path | None
    suffix: str


def open_files(source: str | Path, suffix: str = "") -> Files:
    """Opens a folder of ``encoder.pt``, ``decoder.pt``, ``vocab.json`` and ``merges.txt``, or a hub id of one.

    Args:
        suffix: tried first; a folder that has none of the names with it is read without.

    Raises:
        VlrtError: a part is missing or damaged.
    """
    folder, snapshot = Path(source).expanduser(), None
    if not folder.is_dir():
        if not hub.is_hub_id(str(source)) or folder.exists():
            what = f"`{source}` is no folder with encoder.pt and decoder.pt"
            raise VlrtError(what, "give min-dalle's folder, or a hub id")
        stems = {"encoder": "pt", "decoder": "pt", "vocab": "json", "merges": "txt"}
        names = (*(f"{stem}{suffix}.{ending}" for stem, ending in stems.items()), "detoker.pt")
        snapshot = hub.fetch(str(source), patterns=names, weights=False)
        folder = snapshot.folder
    found = suffix if (folder / f"encoder{suffix}.pt").is_file() else ""
    halves = [open_checkpoint(folder, weights=f"{half}{found}.pt") for half in ("encoder", "decoder")]
    if snapshot is not None:
        halves = [replace(half, origin=snapshot.name, commit=snapshot.commit) for half in halves]
    near = (folder / "detoker.pt", folder.resolve().parent / "vqgan" / "detoker.pt")
    return Files(halves[0], halves[1], next((path for path in near if path.is_file()), None), found)


def load_dalle_mini(files: Files, heads: int | None = None) -> DalleMini:
    """Reads both halves; every size but the heads comes from their shapes.

    Args:
        heads: attention heads; the width over 64 where `None`.

    Raises:
        VlrtError: another model; a tensor missing, of another shape or dtype. What the reference does not read, and
            says nothing about, is left alone here too.
    """
    encoder_sizes = _sizes(files.encoder, heads, codes=0)
    codes = _codes(files.decoder)
    decoder_sizes = _sizes(files.decoder, heads, codes)
    if encoder_sizes.width != decoder_sizes.width:
        what = f"the encoder is {encoder_sizes.width} wide, the decoder {decoder_sizes.width}"
        raise VlrtError(what, "give the halves of one model")
    encoder = weight_layout.build(
        lambda: DalleMiniEncoder(encoder_sizes, PAD),
        half_layout(encoder_sizes),
        files.encoder.tensors,
        files.encoder.files[0].name,
    )
    decoder = weight_layout.build(
        lambda: DalleMiniDecoder(decoder_sizes),
        half_layout(decoder_sizes),
        _of_codes(files.decoder, codes),
        files.decoder.files[0].name,
    )
    parts = (*files.encoder.files, *files.decoder.files)
    joined = Checkpoint({}, {}, files.encoder.folder, parts, files.encoder.origin, files.encoder.commit, "state-dict")
    return DalleMini(encoder, decoder, joined)


def random_dalle_mini(options: Mapping[str, Any], seed: int) -> DalleMini:
    """A model of the options' sizes (`width`, `layers`, `heads`, `inner`, `vocabulary`, `codes`; DALL·E mini's where
    not given) with random weights of `seed`.

    Raises:
        VlrtError: sizes that cannot be meant.
    """
    said = {"width": 1024, "layers": 12, "heads": 16, "inner": 2730, "vocabulary": 50264, "codes": CODES} | dict(
        options
    )
    try:
        shape = {name: said[name] for name in ("width", "layers", "heads", "inner")}
        read = DalleMiniSizes(said["vocabulary"], 64, **shape)
        written = DalleMiniSizes(said["codes"] + 1, GRID[0] * GRID[1], codes=said["codes"], **shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder, decoder = DalleMiniEncoder(read, PAD).eval(), DalleMiniDecoder(written).eval()
    except (TypeError, ValueError) as error:
        raise VlrtError(f"the model's options do not fit: {error}", "correct models.yaml") from None
    for part in (encoder, decoder):
        part.requires_grad_(False)
    return DalleMini(encoder, decoder)


_HEAD = "lm_head.weight"


def _codes(decoder: Checkpoint) -> int:
    """Those that the reference draws among: all but the ids beyond them that the decoder has for itself."""
    if _HEAD not in decoder.tensors:
        what = f"`{decoder.files[0].name}` lacks the tensor `{_HEAD}`"
        raise VlrtError(what, "give the decoder.pt of kuprel/min-dalle")
    return min(CODES, decoder.tensors[_HEAD].shape[0] - 1)


def _of_codes(checkpoint: Checkpoint, codes: int) -> LazyTensors:
    """The decoder's tensors, its last layer without what is no code: the reference never draws those."""

    def load(name: str) -> Tensor:
        value = checkpoint.tensors[name]
        return value[:codes] if name == _HEAD else value

    loaders = {name: partial(load, name) for name in checkpoint.tensors}
    return LazyTensors(loaders, checkpoint.files[0].name)


def _sizes(checkpoint: Checkpoint, heads: int | None, codes: int) -> DalleMiniSizes:
    tensors, where = checkpoint.tensors, checkpoint.files[0].name
    try:
        vocabulary, width = tensors["embed_tokens.weight"].shape
        positions = tensors["embed_positions.weight"].shape[0]
        inner = tensors["layers.0.glu.fc0.weight"].shape[0]
        layers = len({match.group(1) for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))})
        return DalleMiniSizes(vocabulary, positions, width, layers, heads or width // _HEAD_WIDTH, inner, codes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        what = f"`{where}` is not a half of DALL·E mini: {error}"
        raise VlrtError(what, "encoder.pt and decoder.pt of kuprel/min-dalle are known") from None


def half_layout(sizes: DalleMiniSizes) -> Layout:
    """Of the encoder, or of the decoder where it writes codes."""
    found = same("embedding.words", "embed_tokens", bias=False)
    found |= same("embedding.places", "embed_positions", bias=False)
    found |= same("embedding.norm", "layernorm_embedding") | same("norm", "final_ln")
    if sizes.codes:
        found |= same("head", "lm_head", bias=False)
    for number in range(sizes.layers):
        found |= _layer_layout(f"layers.{number}", bool(sizes.codes))
    return found


def _layer_layout(layer: str, writes: bool) -> Layout:
    projections = [f"{layer}.self_attn.{part}_proj" for part in "qkv"]
    found = linear(f"{layer}.attention.qkv", *projections, bias=False)
    found |= linear(f"{layer}.attention.output", f"{layer}.self_attn.out_proj", bias=False)
    found |= same(f"{layer}.attention.before", f"{layer}.pre_self_attn_layer_norm")
    found |= same(f"{layer}.attention.after", f"{layer}.self_attn_layer_norm")
    found |= linear(f"{layer}.gated.gates", f"{layer}.glu.fc0", f"{layer}.glu.fc1", bias=False)
    found |= linear(f"{layer}.gated.output", f"{layer}.glu.fc2", bias=False)
    found |= same(f"{layer}.gated.ln0", f"{layer}.glu.ln0") | same(f"{layer}.gated.ln1", f"{layer}.glu.ln1")
    if not writes:
        return found
    cross = f"{layer}.encoder_attn"
    found |= linear(f"{layer}.cross.query", f"{cross}.q_proj", bias=False)
    found |= linear(f"{layer}.cross.key_value", f"{cross}.k_proj", f"{cross}.v_proj", bias=False)
    found |= linear(f"{layer}.cross.output", f"{cross}.out_proj", bias=False)
    found |= same(f"{layer}.cross.before", f"{layer}.pre_encoder_attn_layer_norm")
    return found | same(f"{layer}.cross.after", f"{layer}.encoder_attn_layer_norm")
