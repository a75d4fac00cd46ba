"""Checkpoints of a tiny GLIDE in OpenAI's layout, with the weights that `tests/golden/glide.py` gave the original."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from vlrt.zoo import Entry
from vlrt_export import glide_checkpoint
from vlrt_export.modules.glide_clip import NoisedClipImage, NoisedClipSizes, NoisedClipText
from vlrt_export.modules.glide_unet import GlideSizes, GlideUnet
from vlrt_export.request import Request
from vlrt_export.weight_layout import Layout

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def script() -> ModuleType:
    """The module that made the goldens; only its formulas are used, never the original."""
    if "golden_glide" not in sys.modules:
        spec = importlib.util.spec_from_file_location("golden_glide", GOLDEN / "glide.py")
        if spec is None or spec.loader is None:
            raise ImportError("glide")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["golden_glide"] = module
    return sys.modules["golden_glide"]


def config() -> dict[str, Any]:
    """The goldens' sizes under our names."""
    made = script()
    return {
        "base": _sizes(made.BASE),
        "upsampler": _sizes(made.UPSAMPLER),
        "clip": {
            "image_size": 8,
            "patch_size": 2,
            "vocabulary": 560,
            "context": made.CLIP_CONTEXT,
            "dimension": 24,
            **{f"{tower}_{kind}": 2 for tower in ("text", "image") for kind in ("heads", "layers")},
            "head_width": 16,
        },
    }


def save(folder: Path, inpaint: bool = False, clip: bool = True) -> Request:
    """Writes the state dicts, tokenizers and configuration; the export that is asked of them."""
    folder.mkdir(parents=True, exist_ok=True)
    made, sizes = script(), config()
    suffix = "_inpaint" if inpaint else ""
    for kind, section, low in ((f"base{suffix}", "base", 0), (f"upsample{suffix}", "upsampler", 8)):
        torch.save(
            _half(kind, GlideSizes(**{**sizes[section], "inpaint": inpaint, "low_resolution": low})),
            folder / f"{kind}.pt",
        )
    if clip:
        noised = NoisedClipSizes(**sizes["clip"])
        for kind, tower in (("clip_image_enc", NoisedClipImage(noised)), ("clip_text_enc", NoisedClipText(noised, 1))):
            torch.save(_state(kind, tower, glide_checkpoint.clip_layout(tower)), folder / f"{kind}.pt")
    (folder / "encoder.json.gz").write_bytes(gzip.compress(json.dumps(_vocabulary(made.MERGES)).encode()))
    (folder / "vocab.bpe.gz").write_bytes(gzip.compress("\n".join(["#version: 0.2", *made.MERGES, ""]).encode()))
    merges = "\n".join(["#version", *made.CLIP_MERGES]).encode()
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(merges))
    (folder / "config.json").write_text(json.dumps(sizes), "utf-8")
    entry = Entry("glide", ("inpaint" if inpaint else "generate",), "", options={"inpaint": inpaint})
    return Request("glide-tiny", entry, str(folder), options=entry.options)


def published_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes by name that we read from each checkpoint of the published sizes."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    with torch.device("meta"):
        for suffix, inpaint in (("", False), ("_inpaint", True)):
            for kind, sizes in zip(("base", "upsample"), glide_checkpoint.stage_sizes({}, inpaint)):
                unet, text = GlideUnet(sizes), glide_checkpoint.empty_text(sizes)
                shapes = _shapes(unet, glide_checkpoint.unet_layout(unet))
                found[f"{kind}{suffix}"] = shapes | _shapes(text, glide_checkpoint.text_layout(text, unet))
        clip = NoisedClipSizes()
        for kind, tower in (("clip_image_enc", NoisedClipImage(clip)), ("clip_text_enc", NoisedClipText(clip, 1))):
            found[kind] = _shapes(tower, glide_checkpoint.clip_layout(tower))
    return found


def _sizes(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": given["image_size"],
        "channels": given["num_channels"],
        "multipliers": tuple(map(int, given["channel_mult"].split(","))),
        "blocks": given["num_res_blocks"],
        "attention": tuple(map(int, given["attention_resolutions"].split(","))),
        "head_channels": given["num_head_channels"],
        "context": given["text_ctx"],
        "vocabulary": 257 + len(script().MERGES),
        "text_width": given["xf_width"],
        "text_layers": given["xf_layers"],
        "text_heads": given["xf_heads"],
    }


def _half(kind: str, sizes: GlideSizes) -> dict[str, torch.Tensor]:
    unet = GlideUnet(sizes)
    text = glide_checkpoint.empty_text(sizes)
    state = _state(kind, unet, glide_checkpoint.unet_layout(unet))
    return state | _state(kind, text, glide_checkpoint.text_layout(text, unet))


def _state(kind: str, module: nn.Module, layout: Layout) -> dict[str, torch.Tensor]:
    """Weights by the checkpoint's names."""
    shapes = _shapes(module, layout)
    return {name: torch.from_numpy(script().weight(f"{kind}/{name}", shape)) for name, shape in shapes.items()}


def _shapes(module: nn.Module, layout: Layout) -> dict[str, tuple[int, ...]]:
    """Shapes by the checkpoint's names."""
    return {layout[name].names[0]: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _vocabulary(merges: list[str]) -> dict[str, int]:
    """GLIDE's order: printable bytes, the other bytes, merges, the end."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}
