"""Sides of `vlrt bench --vs` on torch: the same weights give the same tokens and embeddings as our bundle."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from vlrt import benchmark_worker
from vlrt.benchmark_job import Job, Point, SkippedError
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.families import blip, ddpm
from vlrt_export.peers import diffusers_peer, openvino_peer, optimum_peer, transformers_peer
from vlrt_export.request import Request


def beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Captions of a tiny BLIP, from a checkpoint in transformers' layout."""
    torch.set_num_threads(1)
    tiny, folder = beside("test_blip_captions"), tmp_path_factory.mktemp("peers")
    checkpoint = tiny.save(tiny.reference(3), folder / "checkpoint")
    write_bundle(blip.build(tiny.request(checkpoint)), folder / "bundle")
    pixels = np.random.default_rng(0).standard_normal((2, 3, tiny.SIDE, tiny.SIDE), np.float32)
    np.savez(folder / "inputs.npz", pixels=pixels)
    return Job(
        task="caption",
        folder=str(folder / "bundle"),
        model="blip-tiny",
        family="blip",
        source=str(checkpoint),
        seed=0,
        device="cpu",
        threads=1,
        tokens=6,
        inputs=str(folder / "inputs.npz"),
        prompt="",
        steps=1,
        prepared=str(folder),
    )


@pytest.mark.parametrize("point", [Point(), Point(1, 3), Point(2)])
def test_transformers_says_what_we_say(job: Job, point: Point) -> None:
    transformers_peer.prepare(job)
    ours, theirs = benchmark_worker.load(job), transformers_peer.load(job)
    found = ours.run(point)
    assert len(found) == job.tokens
    assert found == theirs.run(point)
    assert {"torch", "transformers"} <= set(theirs.libraries)


def test_random_weights_are_made_again(job: Job, tmp_path: Path) -> None:
    """A bundle of random weights names its seed; the side builds the same model and loads it as any other."""
    from vlrt_export.blip_checkpoint import CAPTIONING, random_blip

    sizes = {"vision": {"num_hidden_layers": 1, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 32}}
    sizes["vision"] |= {"image_size": 16, "patch_size": 8}
    sizes["text"] = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    sizes["text"] |= {"vocab_size": 60, "bos_token_id": 3, "sep_token_id": 2, "pad_token_id": 0, "eos_token_id": 2}
    random = replace(job, source="random", prepared=str(tmp_path), seed=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers_peer, "_entry", lambda _: type("Entry", (), {"options": sizes}))
        transformers_peer.prepare(random)
    loaded: Any = transformers_peer.load(random)
    expected = random_blip(sizes, CAPTIONING, 5).vision.state_dict()
    found = {name: tensor for name, tensor in loaded.model.named_parameters() if "patch_embedding" in name}
    assert any(torch.equal(v, e) for v in found.values() for e in expected.values() if v.shape == e.shape)


def test_diffusers_paints_what_we_paint(tmp_path: Path) -> None:
    import diffusers

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 8}
    unet = diffusers.UNet2DModel(**blocks, **sizes, norm_num_groups=8, in_channels=1, out_channels=1)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "checkpoint")
    entry = Entry("ddpm", ("generate",), "")
    write_bundle(ddpm.build(Request("tiny", entry, str(tmp_path / "checkpoint"))), tmp_path / "bundle")
    job = Job(
        task="generate",
        folder=str(tmp_path / "bundle"),
        model="tiny",
        family="ddpm",
        source=str(tmp_path / "checkpoint"),
        seed=0,
        device="cpu",
        threads=1,
        tokens=0,
        inputs="",
        prompt="",
        steps=3,
        prepared=str(tmp_path),
    )
    diffusers_peer.prepare(job)
    ours, theirs = benchmark_worker.load(job), diffusers_peer.load(job)
    for point in (Point(), Point(2)):
        assert ours.run(point) == pytest.approx(theirs.run(point), abs=0.01)


@pytest.mark.parametrize(
    ("peer", "change", "words"),
    [
        (transformers_peer, {"family": "show-and-tell"}, "`show-and-tell` is not compared"),
        (optimum_peer, {}, "exports no `blip`"),
        (openvino_peer, {}, "no task of its own"),
        (diffusers_peer, {}, "`caption` is not compared"),
        (diffusers_peer, {"task": "generate"}, "weights in diffusers' layout"),
    ],
)
def test_what_a_side_cannot_do_it_says(job: Job, peer: ModuleType, change: dict[str, str], words: str) -> None:
    with pytest.raises(SkippedError, match=words):
        peer.prepare(replace(job, **change))
