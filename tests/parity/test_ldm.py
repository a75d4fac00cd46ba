"""The original latent diffusion model against diffusers' pipeline on a tiny random one."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LDMTextToImagePipeline
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from transformers import BertTokenizer

import vlrt
from vlrt.bundle import Bundle
from vlrt_export.picture_checks import LEAST, psnr

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*deprecated.*")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def pipeline(
    diffusers_folders: ModuleType, stable_diffusion: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Bundle]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("ldm")
    sizes = {"vocab_size": 60, "max_position_embeddings": 77, "encoder_layers": 2, "encoder_ffn_dim": 40}
    config = LDMBertConfig(**sizes, encoder_attention_heads=3, head_dim=8, d_model=diffusers_folders.WIDTH)
    made = LDMTextToImagePipeline(
        vqvae=diffusers_folders.autoencoder(),
        bert=diffusers_folders.spread(LDMBertModel(config), 3),
        tokenizer=None,
        unet=diffusers_folders.unet(**diffusers_folders.ONE_LEVEL),
        scheduler=diffusers_folders.scheduler("DDIMScheduler", clip_sample=False),
    )
    source = folder / "source"
    made.save_pretrained(source)
    (source / "tokenizer").mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (source / "tokenizer" / "vocab.txt").write_text("\n".join(words), "utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (source / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    diffusers_folders.add_component(source, "tokenizer", "transformers", "BertTokenizer")
    made.register_modules(tokenizer=BertTokenizer.from_pretrained(source / "tokenizer"))
    made.set_progress_bar_config(disable=True)
    known = Bundle.open(stable_diffusion[1])  # its autoencoder is this one
    return made, diffusers_folders.export("ldm", source, folder / "bundle", known=known, shared=("latent_decoder",))


@pytest.mark.parametrize("guidance", [6.0, 1.0])
def test_words_to_pictures(pipeline: tuple[Any, Bundle], guidance: float) -> None:
    """Without noise on the way: the reference draws that from torch's global generator, whatever the seed."""
    made, bundle = pipeline
    options = {"num_inference_steps": 4, "guidance_scale": guidance}
    # The reference takes a latent for 8 x 8 pixels; this autoencoder makes 2 x 2 of it.
    picture = made("A Squirrel", height=64, width=128, generator=torch.Generator().manual_seed(3), **options).images[0]
    painter = vlrt.load("generate", bundle.path)
    found = painter("A Squirrel", seed=3, steps=4, guidance=guidance, height=16, width=32)
    assert np.asarray(picture).std() > 10
    assert psnr(found.pixels, np.asarray(picture)) >= LEAST
