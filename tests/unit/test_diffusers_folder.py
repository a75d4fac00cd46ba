"""Folders in diffusers' layout: every form of the weights, old names, and what is wrong with a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlrt.errors import VlrtError
from vlrt_export.diffusers_folder import open_pipeline, random_pipeline
from vlrt_export.diffusers_schedule import read_schedule

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def source(diffusers_folders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "source"
    diffusers_folders.write_stable_diffusion(folder, diffusers_folders.unet(**diffusers_folders.ONE_LEVEL))
    return folder


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def same(model: Any, other: Any) -> bool:
    state, wanted = model.state_dict(), other.state_dict()
    return set(state) == set(wanted) and all(torch.equal(state[name], wanted[name]) for name in state)


def test_components_and_origin(source: Path) -> None:
    pipeline = open_pipeline(str(source))
    assert pipeline.kind == "StableDiffusionPipeline"
    assert {"unet", "vae", "text_encoder", "scheduler", "tokenizer"} <= set(pipeline.components)
    assert pipeline.origin == "source"
    assert pipeline.revision.startswith("sha256:")
    assert pipeline["scheduler"].config["skip_prk_steps"] is True
    assert same(pipeline["unet"].model(), diffusers.UNet2DConditionModel.from_pretrained(source / "unet"))


@pytest.mark.parametrize("form", ["bin", "shards", "halved beside"])
def test_every_form_of_the_weights(form: str, source: Path, copy: Path) -> None:
    place = copy / "unet"
    state = load_file(place / f"{WEIGHTS}.safetensors")
    if form == "bin":
        torch.save(state, place / f"{WEIGHTS}.bin")
        (place / f"{WEIGHTS}.safetensors").unlink()
    elif form == "shards":
        shutil.rmtree(place)
        diffusers.UNet2DConditionModel.from_pretrained(source / "unet").save_pretrained(place, max_shard_size="50KB")
        assert (place / f"{WEIGHTS}.safetensors.index.json").is_file()
    else:
        save_file({name: tensor.half() for name, tensor in state.items()}, place / f"{WEIGHTS}.fp16.safetensors")
    expected = diffusers.UNet2DConditionModel.from_pretrained(source / "unet")
    assert same(open_pipeline(str(copy))["unet"].model(), expected)


def test_old_names_of_attention_layers(source: Path, copy: Path) -> None:
    """As in the autoencoders of Stable Diffusion 1.x."""
    file = copy / "vae" / f"{WEIGHTS}.safetensors"
    names = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    state = load_file(file)
    for new, old in names:
        state = {name.replace(f".{new}.", f".{old}."): tensor for name, tensor in state.items()}
    save_file(state, file)
    assert any(".proj_attn." in name for name in state)
    assert same(open_pipeline(str(copy))["vae"].model(), open_pipeline(str(source))["vae"].model())


def test_damaged_folders(copy: Path) -> None:
    file = copy / "unet" / f"{WEIGHTS}.safetensors"
    state = load_file(file)
    save_file({**state, "stray.weight": torch.ones(2)}, file)
    with pytest.raises(VlrtError, match=r"unexpected tensor `stray\.weight`"):
        open_pipeline(str(copy))["unet"].model()
    save_file({name: tensor for name, tensor in state.items() if name != "conv_in.bias"}, file)
    with pytest.raises(VlrtError, match=r"lacks the tensor `conv_in\.bias`"):
        open_pipeline(str(copy))["unet"].model()
    config = json.loads((copy / "unet" / "config.json").read_text("utf-8"))
    (copy / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "NoSuchModel"]}), "utf-8")
    (copy / "unet" / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(VlrtError, match="`NoSuchModel`, which diffusers has not"):
        open_pipeline(str(copy))["unet"].model()
    with pytest.raises(VlrtError, match="has no component `vae`"):
        open_pipeline(str(copy))["vae"]
    with pytest.raises(VlrtError, match="is not a folder in diffusers' layout"):
        open_pipeline(str(copy / "model_index.json"))


def test_random_weights_are_those_of_the_seed(diffusers_folders: ModuleType) -> None:
    sizes = {"unet": {**diffusers_folders.ONE_LEVEL, "norm_num_groups": 8, "cross_attention_dim": 8}}
    first, second, other = (
        random_pipeline("StableDiffusionPipeline", {"unet": "UNet2DConditionModel"}, sizes, seed)["unet"].model()
        for seed in (0, 0, 1)
    )
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize(
    "kind",
    [
        *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
        *("EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "LCMScheduler", "UnCLIPScheduler"),
    ],
)
def test_what_a_configuration_leaves_out_is_the_classs_own(kind: str) -> None:
    whole = getattr(diffusers, kind)()
    short, full = read_schedule({"_class_name": kind}), read_schedule({**whole.config, "_class_name": kind})
    assert (short.schedule, short.rule) == (full.schedule, full.rule)
    assert not short.note


def test_schedulers_that_are_not_ours() -> None:
    found = read_schedule({"_class_name": "UniPCMultistepScheduler"})
    assert found.rule == "dpm++2m"
    assert found.note == "sampled by `dpm++2m` in the place of diffusers' UniPCMultistepScheduler"
    third = read_schedule({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3})
    assert third.note == "sampled by `dpm++2m` in the place of solver_order 3"
    sigmoid = read_schedule({"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"}).schedule
    assert sigmoid.betas == "explicit"
    assert list(sigmoid.values) == diffusers.DDPMScheduler(beta_schedule="sigmoid").betas.double().tolist()
    for settings, message in (
        ({"_class_name": "VQDiffusionScheduler"}, "`VQDiffusionScheduler`, which no rule here"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "`timestep_type` 'continuous'"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "flow"}, "predicts `flow`"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "odd"}, "unknown `beta_schedule` 'odd'"),
    ):
        with pytest.raises(VlrtError, match=message):
            read_schedule(settings)
