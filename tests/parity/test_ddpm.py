"""Pixel diffusion against diffusers' pipelines on tiny random models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import onnxruntime
import pytest
import torch

import vlrt
from vlrt.bundle import Bundle
from vlrt.errors import UsageError
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_graph
from vlrt_export.diffusers_folder import open_pipeline
from vlrt_export.families.ddpm import reference_picture
from vlrt_export.picture_checks import LEAST, psnr
from vlrt_export.request import Request, build

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def classes(diffusers_folders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """A model of grey pictures of five classes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("classes")
    write(folder / "source", diffusers_folders, diffusers.DDPMScheduler(), num_class_embeds=5)
    return folder / "source", diffusers_folders.export("ddpm", folder / "source", folder / "bundle")


def write(folder: Path, folders: ModuleType, scheduler: Any, **changes: Any) -> None:
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 8}
    sizes |= {"block_out_channels": (16,), "attention_head_dim": 8, "dropout": 0.1}
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}
    unet = folders.spread(diffusers.UNet2DModel(**(sizes | blocks | changes)), 1)
    kind = diffusers.DDIMPipeline if "DDIM" in type(scheduler).__name__ else diffusers.DDPMPipeline
    kind(unet, scheduler).save_pretrained(folder)


@pytest.mark.parametrize(("label", "rule"), [(0, "ddpm"), (4, "ddim"), ("2", "ddpm")])
def test_pictures_of_a_class(classes: tuple[Path, Bundle], label: int | str, rule: str) -> None:
    source, bundle = classes
    pipeline = open_pipeline(str(source))
    kind = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}[rule]
    pipeline = pipeline.replaced("scheduler", dataclasses.replace(pipeline["scheduler"], kind=kind))
    wanted = reference_picture(pipeline["unet"].model(), pipeline, int(label), steps=6, seed=2)
    found = vlrt.load("generate", bundle.path)(seed=2, steps=6, label=label, scheduler=rule)
    assert wanted.std() > 10
    assert psnr(found.pixels, wanted) >= LEAST
    other = vlrt.load("generate", bundle.path)(seed=2, steps=6, label=(int(label) + 1) % 5, scheduler=rule)
    assert psnr(other.pixels, wanted) < 40


@pytest.mark.parametrize("label", [None, 5, "cat"])
def test_a_class_that_is_none(classes: tuple[Path, Bundle], label: int | str | None) -> None:
    with pytest.raises(UsageError, match="class"):
        vlrt.load("generate", classes[1].path)(seed=2, steps=2, label=label)


def test_a_model_without_classes(diffusers_folders: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "source", diffusers_folders, diffusers.DDIMScheduler(), in_channels=3, out_channels=3)
    entry = Entry(family="ddpm", summary="tiny", tasks=("generate",))
    plan = build(Request("tiny", entry, source=str(tmp_path / "source")))
    assert [graph.role for graph in plan.graphs] == ["denoiser"]
    assert list(plan.graphs[0].inputs) == ["sample", "timestep"]
    spec = plan.diffusion
    assert spec is not None
    assert (spec.label_input, spec.stages[0].rule, spec.stages[0].steps) == ("", "ddim", 50)
    file = tmp_path / write_graph(plan.graphs[0], tmp_path).file
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    sample, timestep = torch.randn(2, 3, 8, 6), torch.tensor([3.0, 900.0])
    found = session.run(None, {"sample": sample.numpy(), "timestep": timestep.numpy()})[0]
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "source" / "unet")
    with torch.no_grad():
        np.testing.assert_allclose(found, unet(sample, timestep).sample, atol=2e-5)


def test_classes_have_the_folders_names(classes: tuple[Path, Bundle], tmp_path: Path) -> None:
    from vlrt_export.families.ddpm import _labels

    source = tmp_path / "named"
    source.mkdir()
    index = {"_class_name": "DDIMPipeline", "id2label": {"0": "cat", "1": "dog"}}
    (source / "model_index.json").write_text(json.dumps(index), "utf-8")
    assert _labels(open_pipeline(str(source)), 3) == ("cat", "dog", "2")
