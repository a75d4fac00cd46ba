"""GLIDE's checkpoints: OpenAI's state dicts by their file names, as our modules; or random weights of their sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from vlrt.errors import VlrtError
from vlrt_export.checkpoints import Checkpoint, open_checkpoint, read_json
from vlrt_export.modules.glide_clip import NoisedClipImage, NoisedClipSizes, NoisedClipText
from vlrt_export.modules.glide_text import GlideText
from vlrt_export.modules.glide_unet import GlideSizes, GlideUnet
from vlrt_export.weight_layout import Layout, Part, build, check_surplus, names_of

Sizes = TypeVar("Sizes", GlideSizes, NoisedClipSizes)
Module = TypeVar("Module", bound=nn.Module)

CONFIG = "config.json"
_UPSAMPLER = GlideSizes(image_size=256, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, low_resolution=64)
_FILES = {
    "base": ("base.pt",),
    "upsampler": ("upsample.pt",),
    "base, inpainting": ("base_inpaint.pt", "base-inpaint.pt"),
    "upsampler, inpainting": ("upsample_inpaint.pt", "upsample-inpaint.pt"),
}
_CLIP_FILES = ("clip_image_enc.pt", "clip_text_enc.pt")


@dataclass(frozen=True)
class Half:
    """A denoiser and the transformer that reads the prompt for it."""

    unet: GlideUnet
    text: GlideText


@dataclass(frozen=True)
class NoisedClip:
    """Both towers of the CLIP that was trained on noisy pictures."""

    image: NoisedClipImage
    text: NoisedClipText
    sizes: NoisedClipSizes


@dataclass(frozen=True)
class Glide:
    """Everything of one pipeline; `clip` is `None` where its files are not there, or for inpainting."""

    base: Half
    upsampler: Half
    clip: NoisedClip | None
    folder: Path | None
    revision: str


def find_folder(source: str) -> Path:
    """The folder that the user named.

    Raises:
        VlrtError: it is none.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise VlrtError(
            f"`{source}` is not a folder", "give the folder that holds OpenAI's `base.pt` and `upsample.pt`"
        )
    return folder


def has_clip(folder: Path) -> bool:
    """Whether both files of the noised CLIP are there."""
    return all((folder / name).is_file() for name in _CLIP_FILES)


def open_folder(folder: Path, config: Mapping[str, Any], inpaint: bool, clip_end: int | None) -> Glide:
    """Reads the state dicts of a folder.

    Args:
        folder: with OpenAI's files; a ``config.json`` there may give other sizes than the published ones.
        config: sizes from the zoo entry: objects `base`, `upsampler` and `clip`.
        inpaint: whether the two checkpoints for inpainting are meant.
        clip_end: id of the end in the noised CLIP's tokenizer; `None` leaves that CLIP out.

    Raises:
        VlrtError: a file is missing or damaged, or a tensor is missing, left over, or of another shape.
    """
    given = {**config, **(read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {})}
    base_sizes, upsampler_sizes = stage_sizes(given, inpaint)
    kind = ", inpainting" if inpaint else ""
    base, upsampler = (_open(folder, _FILES[f"{name}{kind}"]) for name in ("base", "upsampler"))
    halves = load_half(base, base_sizes), load_half(upsampler, upsampler_sizes)
    clip = None if clip_end is None else _load_clip(folder, clip_sizes(given), clip_end)
    return Glide(*halves, clip, folder, base.revision)


def random_glide(config: Mapping[str, Any], inpaint: bool, clip_end: int | None, seed: int) -> Glide:
    """GLIDE of these sizes with random weights of `seed`; arguments as those of `open_folder`."""
    halves = [_random_half(sizes, seed + place) for place, sizes in enumerate(stage_sizes(config, inpaint))]
    noised = clip_sizes(config)
    clip = None
    if clip_end is not None:
        image, text = NoisedClipImage(noised), NoisedClipText(noised, clip_end)
        clip = NoisedClip(_randomised(image, seed + 2), _randomised(text, seed + 3), noised)
    return Glide(halves[0], halves[1], clip, None, f"seed {seed}")


def load_half(checkpoint: Checkpoint, sizes: GlideSizes) -> Half:
    """One denoiser with its text side from a state dict.

    Raises:
        VlrtError: a tensor is missing, left over, or of another shape.
    """
    with torch.device("meta"):
        unet, text = GlideUnet(sizes), empty_text(sizes)
    layouts = unet_layout(unet), text_layout(text, unet)
    where = checkpoint.origin
    check_surplus(checkpoint.tensors, names_of(*layouts), r"^unemb\.", where)
    return Half(
        build(lambda: GlideUnet(sizes), layouts[0], checkpoint.tensors, where),
        build(lambda: empty_text(sizes), layouts[1], checkpoint.tensors, where),
    )


def unet_layout(unet: GlideUnet) -> Layout:
    """Our names are the checkpoint's."""
    return {name: Part((name,)) for name in unet.state_dict()}


def text_layout(text: GlideText, unet: GlideUnet) -> Layout:
    """The transformer, and the projections that the checkpoint keeps in the denoiser's attention layers."""
    readers = [name for name, _ in unet.attention_layers]
    layout = {}
    for name in text.state_dict():
        first, _, rest = name.partition(".")
        if first == "encoder_kv":
            place, _, kind = rest.partition(".")
            layout[name] = Part((f"{readers[int(place)]}.encoder_kv.{kind}",))
        else:
            layout[name] = Part((f"transformer.{name}" if first == "resblocks" else name,))
    return layout


def clip_layout(tower: nn.Module) -> Layout:
    """Both towers keep their layers under ``blocks.input``, ``blocks.block_0``, …, ``blocks.output``."""
    layout = {}
    for name in tower.state_dict():
        first, _, rest = name.partition(".")
        if first == "blocks":
            layout[name] = Part((f"blocks.block_{rest}",))
        else:
            layout[name] = Part((f"blocks.{name}" if first == "output" else f"blocks.input.{name}",))
    return layout


def _load_clip(folder: Path, sizes: NoisedClipSizes, end_id: int) -> NoisedClip:
    image = _load_tower(_open(folder, _CLIP_FILES[:1]), lambda: NoisedClipImage(sizes))
    text = _load_tower(_open(folder, _CLIP_FILES[1:]), lambda: NoisedClipText(sizes, end_id))
    return NoisedClip(image, text, sizes)


def _load_tower(checkpoint: Checkpoint, make: Callable[[], Module]) -> Module:
    with torch.device("meta"):
        layout = clip_layout(make())
    check_surplus(checkpoint.tensors, names_of(layout), "^$", checkpoint.origin)
    return build(make, layout, checkpoint.tensors, checkpoint.origin)


def _open(folder: Path, names: tuple[str, ...]) -> Checkpoint:
    found = [name for name in names if (folder / name).is_file()]
    if not found:
        raise VlrtError(f"`{folder.name}` lacks `{names[0]}`", "it needs OpenAI's checkpoints under their own names")
    return replace(open_checkpoint(folder / found[0]), folder=folder)


def clip_sizes(config: Mapping[str, Any]) -> NoisedClipSizes:
    """The noised CLIP's sizes: the published ones, or a configuration's."""
    return _overlaid(NoisedClipSizes(), config, "clip")


def stage_sizes(config: Mapping[str, Any], inpaint: bool) -> tuple[GlideSizes, GlideSizes]:
    """Sizes of base model and upsampler: the published ones, or a configuration's."""
    base = _overlaid(replace(GlideSizes(), inpaint=inpaint), config, "base")
    upsampler = _overlaid(replace(_UPSAMPLER, inpaint=inpaint, low_resolution=base.image_size), config, "upsampler")
    return base, upsampler


def _overlaid(sizes: Sizes, config: Mapping[str, Any], section: str) -> Sizes:
    """Published sizes with those that a configuration gives in their place."""
    given = config.get(section, {})
    names = {field.name for field in fields(sizes)}
    if not isinstance(given, Mapping) or set(given) - names:
        what = f"`{section}` of GLIDE's configuration has unknown sizes, known are {', '.join(sorted(names))}"
        raise VlrtError(what, f"correct `{CONFIG}`")
    try:
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
        return replace(sizes, **values)
    except (ValueError, TypeError) as error:
        raise VlrtError(f"`{section}` of GLIDE's configuration: {error}", f"correct `{CONFIG}`") from None


def empty_text(sizes: GlideSizes) -> GlideText:
    """The text side for a denoiser of these sizes, without weights of meaning."""
    with torch.device("meta"):
        readers = [layer.proj_out.out_channels for _, layer in GlideUnet(sizes).attention_layers]
    return GlideText(
        sizes.vocabulary,
        sizes.context,
        sizes.text_width,
        sizes.text_layers,
        sizes.text_heads,
        sizes.embedding,
        readers,
    )


def _random_half(sizes: GlideSizes, seed: int) -> Half:
    return Half(_randomised(GlideUnet(sizes), 2 * seed), _randomised(empty_text(sizes), 2 * seed + 1))


def _randomised(module: Module, seed: int) -> Module:
    """Random weights of a spread that keeps the size of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            numbers = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() > 1:
                fan_in = 1 if "embedding" in name or name.startswith("w_") else tensor[0].numel()
                tensor.copy_(numbers * fan_in**-0.5)
            else:
                gain = name.endswith((".g", "norm.weight", "ln.weight"))
                tensor.copy_(numbers * 0.1 + gain)
    return module.eval().requires_grad_(False)
