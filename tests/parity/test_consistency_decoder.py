"""The consistency decoder in the place of an autoencoder's own, against diffusers on a tiny random one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import vlrt
from vlrt.bundle import Bundle
from vlrt.errors import VlrtError
from vlrt_export.consistency_decoder import load_decoder
from vlrt_export.picture_checks import LEAST, photograph, psnr

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*deprecated.*")
PROMPT = "two dogs"


@pytest.fixture(scope="module")
def exported(
    diffusers_folders: ModuleType, stable_diffusion: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Bundle]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("consistency")
    encoder = {"encoder_block_out_channels": (8, 16), "encoder_down_block_types": ("DownEncoderBlock2D",) * 2}
    encoder |= {"encoder_layers_per_block": 1, "encoder_norm_num_groups": 4}
    decoder = {"decoder_block_out_channels": (16,), "decoder_down_block_types": ("ResnetDownsampleBlock2D",)}
    decoder |= {"decoder_up_block_types": ("ResnetUpsampleBlock2D",), "decoder_layers_per_block": 1}
    made = diffusers.ConsistencyDecoderVAE(sample_size=16, decoder_norm_num_groups=8, **encoder, **decoder)
    diffusers_folders.spread(made, 5).save_pretrained(folder / "decoder")
    unet = diffusers_folders.unet(**diffusers_folders.ONE_LEVEL)
    diffusers_folders.write_stable_diffusion(folder / "source", unet)
    options = {"decoder": str(folder / "decoder")}
    known = Bundle.open(stable_diffusion[1])
    bundle = diffusers_folders.export(
        "stable-diffusion", folder / "source", folder / "bundle", options, known, shared=("text_encoder",)
    )
    return folder / "source", folder / "decoder", bundle


def reference(source: Path, decoder: Path, kind: str) -> Any:
    vae = diffusers.ConsistencyDecoderVAE.from_pretrained(decoder)
    made = getattr(diffusers, kind).from_pretrained(source, vae=vae, safety_checker=None, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.filterwarnings("ignore:.*block_out_channels.*")
def test_words_and_photographs(exported: tuple[Path, Path, Bundle]) -> None:
    source, decoder, bundle = exported
    picture = photograph(16, 24)
    given = {"generator": torch.Generator().manual_seed(4), "num_inference_steps": 4}
    wanted = reference(source, decoder, "StableDiffusionPipeline")(PROMPT, height=16, width=24, **given).images[0]
    found = vlrt.load("generate", bundle.path)(PROMPT, seed=4, steps=4, height=16, width=24)
    assert psnr(found.pixels, np.asarray(wanted)) >= LEAST
    given["generator"] = torch.Generator().manual_seed(4)
    wanted = reference(source, decoder, "StableDiffusionImg2ImgPipeline")(PROMPT, picture, 0.6, **given).images[0]
    found = vlrt.load("edit", bundle.path)(picture, PROMPT, seed=4, steps=4, strength=0.6)
    assert psnr(found.pixels, np.asarray(wanted)) >= LEAST


def test_its_stage_keeps_its_two_steps(exported: tuple[Path, Path, Bundle]) -> None:
    spec = exported[2].manifest.diffusion
    assert spec is not None
    assert [(stage.name, stage.rule, stage.steps) for stage in spec.stages][1] == ("decode", "consistency", 2)
    assert exported[2].manifest.graphs["decoder_denoiser"].input("timestep").dtype == "int64"


def test_another_model_is_refused(stable_diffusion: tuple[Path, Path]) -> None:
    with pytest.raises(VlrtError, match="is a `AutoencoderKL`, expected `ConsistencyDecoderVAE`"):
        load_decoder(str(stable_diffusion[0] / "vae"))
