"""Tiny pipelines in diffusers' layout with random weights that leave nothing zero, and bundles exported from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from vlrt.bundle import Bundle
from vlrt.manifest import GraphSpec
from vlrt.zoo import Entry
from vlrt_export import bundle_writer
from vlrt_export.clip_tokenizer import stand_in
from vlrt_export.graph import Graph
from vlrt_export.request import Request, build

VOCABULARY, CONTEXT, WIDTH = 600, 77, 32
ONE_LEVEL: dict[str, Any] = {
    "block_out_channels": (16,),
    "down_block_types": ("DownBlock2D",),
    "mid_block_type": None,
    "up_block_types": ("CrossAttnUpBlock2D",),
}
"""Sizes of a UNet that is traced in a third of the time."""

_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_AUTOENCODER: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
}
_NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def spread(model: Any, seed: int) -> Any:
    """The model with random weights of a spread that keeps signals alive, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(drawn * scale + (1 if "norm" in name and name.endswith("weight") else 0))
    return model.eval()


def unet(**changes: Any) -> Any:
    """A `UNet2DConditionModel` of two levels."""
    return spread(diffusers.UNet2DConditionModel(**(_UNET | changes)), 1)


def autoencoder(kind: str = "AutoencoderKL", **changes: Any) -> Any:
    """An autoencoder that halves once."""
    return spread(getattr(diffusers, kind)(**(_AUTOENCODER | changes)), 2)


def scheduler(kind: str = "PNDMScheduler", **changes: Any) -> Any:
    """A scheduler as Stable Diffusion 1.x has it."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    skips = {"skip_prk_steps": True, "steps_offset": 1} if kind == "PNDMScheduler" else {}
    return getattr(diffusers, kind)(**(betas | skips | changes))


def write_stable_diffusion(folder: Path, unet_model: Any, made_scheduler: Any | None = None) -> None:
    """A Stable Diffusion pipeline around a UNet, whose input channels decide which one."""
    text = spread(CLIPTextModel(CLIPTextConfig(**_text_config())), 3)
    parts = {"unet": unet_model, "vae": autoencoder(), "text_encoder": text, "tokenizer": None}
    parts["scheduler"] = made_scheduler or scheduler()
    channels = unet_model.config.in_channels
    if channels == 7:
        made = diffusers.StableDiffusionUpscalePipeline(**parts, low_res_scheduler=diffusers.DDPMScheduler())
    else:
        kind = "StableDiffusionInpaintPipeline" if channels == 9 else "StableDiffusionPipeline"
        made = getattr(diffusers, kind)(**parts, **_NO_CHECKER)
    made.save_pretrained(folder)
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """CLIP's slow tokenizer beside a pipeline's other components."""
    place = folder / "tokenizer"
    place.mkdir()
    vocab = json.loads(stand_in(VOCABULARY).tokenizer.to_str())["model"]["vocab"]
    (place / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (place / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT, "pad_token": "<|endoftext|>"}
    (place / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    add_component(folder, "tokenizer", "transformers", "CLIPTokenizer")


def add_component(folder: Path, name: str, library: str, kind: str) -> None:
    """Names a component in ``model_index.json``."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    index[name] = [library, kind]
    (folder / "model_index.json").write_text(json.dumps(index), "utf-8")


def export(
    family: str,
    source: Path,
    target: Path,
    options: Mapping[str, Any] | None = None,
    known: Bundle | None = None,
    shared: Sequence[str] = ("text_encoder", "latent_decoder", "latent_encoder"),
) -> Bundle:
    """Exports a folder with all its proofs.

    Args:
        known: a bundle whose graphs `shared` have the same weights: they are copied, for tracing takes most of a test's
            time. They are held against torch again all the same.
    """
    entry = Entry(family=family, summary="tiny", tasks=("generate",), options=dict(options or {}))
    plan = build(Request(target.name, entry, source=str(source), options=entry.options))
    written = bundle_writer.write_graph

    def copied(graph: Graph, folder: Path, *more: Any, **named: Any) -> GraphSpec:
        if known is None or graph.role not in shared:
            return written(graph, folder, *more, **named)
        spec = known.manifest.graphs[graph.role]
        shutil.copyfile(known.path / spec.file, folder / spec.file)
        return spec

    with mock.patch.object(bundle_writer, "write_graph", copied):
        bundle_writer.write_bundle(plan, target)
    return Bundle.open(target)


def _text_config() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": 2,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }
