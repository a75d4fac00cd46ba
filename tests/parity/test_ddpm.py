"""Pixel diffusion against diffusers' pipelines on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import vlrt
from vlrt.bundle import Bundle
from vlrt.errors import UsageError
from vlrt_export.diffusers_folder import open_pipeline
from vlrt_export.families.ddpm import reference_picture
from vlrt_export.picture_checks import LEAST, psnr

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def make(folder: Path, folders: ModuleType, scheduler: Any, **changes: Any) -> tuple[Any, Bundle]:
    torch.set_num_threads(1)
    sizes = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 8}
    sizes |= {"block_out_channels": (16, 32), "attention_head_dim": 8, "dropout": 0.1}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = folders.spread(diffusers.UNet2DModel(**(sizes | blocks | changes)), 1)
    kind = diffusers.DDIMPipeline if "DDIM" in type(scheduler).__name__ else diffusers.DDPMPipeline
    made = kind(unet, scheduler)
    made.save_pretrained(folder / "source")
    made.set_progress_bar_config(disable=True)
    return made, folders.export("ddpm", folder / "source", folder / "bundle")


@pytest.fixture(scope="module")
def grey(diffusers_folders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Bundle]:
    folder = tmp_path_factory.mktemp("grey")
    return make(folder, diffusers_folders, diffusers.DDPMScheduler(), in_channels=1, out_channels=1)


@pytest.fixture(scope="module")
def classes(diffusers_folders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    folder = tmp_path_factory.mktemp("classes")
    one = {"block_out_channels": (16,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    _, bundle = make(folder, diffusers_folders, diffusers.DDIMScheduler(), num_class_embeds=5, **one)
    return folder / "source", bundle


@pytest.mark.parametrize(("rule", "kind"), [("ddpm", "DDPMPipeline"), ("ddim", "DDIMPipeline")])
def test_pictures_without_words(grey: tuple[Any, Bundle], rule: str, kind: str) -> None:
    made, bundle = grey
    scheduler = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[rule]
    pipeline = getattr(diffusers, kind)(made.unet, scheduler.from_config(made.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(generator=torch.Generator().manual_seed(5), num_inference_steps=6).images[0].convert("RGB")
    found = vlrt.load("generate", bundle.path)(seed=5, steps=6, scheduler=rule)
    assert np.asarray(wanted).std() > 10
    assert psnr(found.pixels, np.asarray(wanted)) >= LEAST


def test_the_defaults_are_the_references(grey: tuple[Any, Bundle], classes: tuple[Path, Bundle]) -> None:
    stages = [bundle.manifest.diffusion.stages[0] for bundle in (grey[1], classes[1]) if bundle.manifest.diffusion]
    assert [(stage.rule, stage.steps) for stage in stages] == [("ddpm", 1000), ("ddim", 50)]


@pytest.mark.parametrize("label", [0, 4, "2"])
def test_pictures_of_a_class(classes: tuple[Path, Bundle], label: int | str) -> None:
    source, bundle = classes
    pipeline = open_pipeline(str(source))
    wanted = reference_picture(pipeline["unet"].model(), pipeline, int(label), steps=5, seed=2)
    found = vlrt.load("generate", bundle.path)(seed=2, steps=5, label=label)
    assert psnr(found.pixels, wanted) >= LEAST
    other = vlrt.load("generate", bundle.path)(seed=2, steps=5, label=(int(label) + 1) % 5)
    assert psnr(other.pixels, wanted) < 40


@pytest.mark.parametrize("label", [None, 5, "cat"])
def test_a_class_that_is_none(classes: tuple[Path, Bundle], label: int | str | None) -> None:
    with pytest.raises(UsageError, match="class"):
        vlrt.load("generate", classes[1].path)(seed=2, steps=2, label=label)


def test_classes_have_the_folders_names(classes: tuple[Path, Bundle], tmp_path: Path) -> None:
    from vlrt_export.families.ddpm import _labels

    source = tmp_path / "named"
    source.mkdir()
    index = {"_class_name": "DDIMPipeline", "id2label": {"0": "cat", "1": "dog"}}
    (source / "model_index.json").write_text(json.dumps(index), "utf-8")
    assert _labels(open_pipeline(str(source)), 3) == ("cat", "dog", "2")
