"""UnCLIP against diffusers' pipelines on tiny random models: the same seed gives the same picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PriorTransformer, UnCLIPPipeline, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizerFast,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.cli import main
from vlrt.errors import VlrtError
from vlrt.tasks.generate import Painter
from vlrt.tasks.interpolate import Interpolator
from vlrt.tasks.variations import Varier
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.clip_tokenizer import stand_in
from vlrt_export.diffusers_folder import open_pipeline
from vlrt_export.modules.prior import PriorPrompt, PriorStep
from vlrt_export.picture_checks import photograph, psnr
from vlrt_export.prior_layout import prior_sizes
from vlrt_export.request import Request, build
from vlrt_export.unclip_parts import load_parts
from vlrt_export.unclip_reference import Reference

WIDTH, CONTEXT, END = 32, 16, 513
TIMESTEPS = 50
"""Of 1,000 the last divides predicted noise by 5·10⁻⁵: then the seventh digit of a random model decides pixels."""

STEPS = {"prior": 4, "decoder": 3, "super_resolution": 3}
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*", "ignore:.*Clip.*:FutureWarning")


def spread(model: Any, seed: int) -> Any:
    """Random weights of a spread that leaves nothing zero: as made, prediction and embedding would be."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(drawn * scale + (1 if "norm" in name and name.endswith("weight") else 0))
    return model.eval()


def text_encoder() -> Any:
    config = CLIPTextConfig(
        vocab_size=520, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=CONTEXT, projection_dim=WIDTH, bos_token_id=512, eos_token_id=END,
    )  # fmt: skip
    return spread(CLIPTextModelWithProjection(config), 1)


def image_encoder() -> Any:
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        patch_size=16, projection_dim=WIDTH,
    )  # fmt: skip
    return spread(CLIPVisionModelWithProjection(config), 2)


def decoder() -> Any:
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=6, block_out_channels=(16,), layers_per_block=1,
        down_block_types=("SimpleCrossAttnDownBlock2D",), mid_block_type=None,
        up_block_types=("SimpleCrossAttnUpBlock2D",),
        cross_attention_dim=24, attention_head_dim=8, resnet_time_scale_shift="scale_shift",
        class_embed_type="identity", norm_num_groups=8,
    )  # fmt: skip
    return spread(unet, 3)


def super_resolution(seed: int) -> Any:
    unet = UNet2DModel(
        sample_size=32, in_channels=6, out_channels=3, block_out_channels=(16,), layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D",), up_block_types=("ResnetUpsampleBlock2D",),
        resnet_time_scale_shift="scale_shift", norm_num_groups=8, mid_block_type=None,
    )  # fmt: skip
    return spread(unet, seed)


def tokenizer(folder: Path) -> Any:
    path = folder / "stand_in.json"
    stand_in(END + 1).tokenizer.save(str(path))
    end = "<|endoftext|>"
    return CLIPTokenizerFast(
        tokenizer_file=str(path), model_max_length=CONTEXT, pad_token=end, eos_token=end, unk_token=end,
        bos_token="<|startoftext|>",
    )  # fmt: skip


@pytest.fixture(scope="module")
def karlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Karlo's, with the image encoder of its variations beside the rest."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unclip")
    target = folder / "karlo"
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=12, embedding_dim=WIDTH, num_layers=2, num_embeddings=CONTEXT
    )
    text = UnCLIPTextProjModel(clip_embeddings_dim=WIDTH, time_embed_dim=64, cross_attention_dim=24)
    UnCLIPPipeline(
        prior=spread(prior, 4),
        decoder=decoder(),
        text_encoder=text_encoder(),
        tokenizer=tokenizer(folder),
        text_proj=spread(text, 5),
        super_res_first=super_resolution(6),
        super_res_last=super_resolution(7),
        prior_scheduler=UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        decoder_scheduler=UnCLIPScheduler(num_train_timesteps=TIMESTEPS, variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(num_train_timesteps=TIMESTEPS),
    ).save_pretrained(target)
    image_encoder().save_pretrained(target / "image_encoder")
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(target / "feature_extractor")
    index = json.loads((target / "model_index.json").read_text("utf-8"))
    index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (target / "model_index.json").write_text(json.dumps(index), "utf-8")
    return target


@pytest.fixture(scope="module")
def folder(karlo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported bundle."""
    target = tmp_path_factory.mktemp("bundle") / "karlo"
    write_bundle(build(Request("karlo", zoo.entry("unclip"), str(karlo))), target)
    return target


@pytest.fixture(scope="module")
def reference(karlo: Path) -> Reference:
    return Reference(open_pipeline(str(karlo)))


def close(found: Any, expected: Image.Image) -> bool:
    return psnr(found.pixels, np.asarray(expected)) >= 50


def test_the_same_seed_gives_the_reference_s_picture(folder: Path, reference: Reference) -> None:
    painter = Painter(Bundle.open(folder))
    for seed, prompt in ((1, "a dog"), (2, "")):
        assert close(painter(prompt, seed=seed, steps=STEPS), reference.generate(prompt, seed, STEPS))


def test_words_and_seed_decide_the_picture(folder: Path) -> None:
    painter = Painter(Bundle.open(folder))
    first = painter("a dog", seed=1, steps=STEPS)
    assert psnr(first.pixels, painter("a white house", seed=1, steps=STEPS).pixels) < 40
    assert psnr(first.pixels, painter("a dog", seed=2, steps=STEPS).pixels) < 30


def test_variations_equal_the_reference_s(folder: Path, reference: Reference) -> None:
    steps = {name: count for name, count in STEPS.items() if name != "prior"}
    varier = Varier(Bundle.open(folder))
    pictures = [photograph(40, 57), Image.new("RGB", (64, 32), (200, 30, 40))]
    found = [varier(picture, seed=5, steps=steps) for picture in pictures]
    for picture, painting in zip(pictures, found):
        assert close(painting, reference.vary(picture, 5, STEPS))
    assert psnr(found[0].pixels, found[1].pixels) < 40


def embeddings(reference: Reference, pictures: list[Image.Image]) -> list[torch.Tensor]:
    encoder, extractor = image_encoder(), CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    with torch.no_grad():
        return [encoder(**extractor(images=p, return_tensors="pt")).image_embeds for p in pictures]


def torch_slerp(share: float, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """As diffusers' community pipeline for interpolating between images writes it."""
    unit = [x / x.norm() for x in (start, end)]
    angle = torch.acos((unit[0] * unit[1]).sum())
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / torch.sin(angle)


def test_frames_between_two_photographs_are_those_of_slerped_embeddings(folder: Path, reference: Reference) -> None:
    pictures = [photograph(40, 57), Image.new("RGB", (64, 32), (200, 30, 40))]
    steps = {name: count for name, count in STEPS.items() if name != "prior"}
    found = Interpolator(Bundle.open(folder))(*pictures, frames=3, seed=5, steps=steps)
    start, end = embeddings(reference, pictures)
    assert len(found) == 3
    for frame, share in zip(found, (0.0, 0.5, 1.0)):
        given = torch_slerp(share, start, end)
        assert close(frame, reference.vary(None, 5, STEPS, image_embeddings=given))


def test_text_diffs_turn_the_embedding_towards_the_difference(folder: Path, reference: Reference) -> None:
    picture = photograph(40, 57)
    steps = {name: count for name, count in STEPS.items() if name != "prior"}
    found = Varier(Bundle.open(folder)).batch(
        picture, source="a dog", target="a tall cat", theta=0.4, seed=5, steps=steps
    )
    pipe_text, tokens = reference.shared["text_encoder"], reference.shared["tokenizer"]
    padded = tokens(["a dog", "a tall cat"], padding="max_length", max_length=CONTEXT, return_tensors="pt")
    with torch.no_grad():
        before, after = pipe_text(padded.input_ids).text_embeds
    (start,) = embeddings(reference, [picture])
    towards = (after - before) / (after - before).norm() * start.norm()
    given = torch_slerp(0.4, start, towards[None])
    assert close(found[0], reference.vary(None, 5, STEPS, image_embeddings=given))
    assert psnr(found[0].pixels, np.asarray(reference.vary(picture, 5, STEPS))) < 50


# --- the prior


def test_a_step_of_the_prior_equals_the_whole_transformer(karlo: Path) -> None:
    """Rows of different lengths; the reference runs all tokens at every step."""
    pipeline = open_pipeline(str(karlo))
    prior = load_parts(pipeline).prior
    assert prior is not None
    component = pipeline["prior"]
    whole = PriorTransformer.from_config(dict(component.config)).eval()
    assert component.checkpoint is not None
    whole.load_state_dict(dict(component.checkpoint.tensors))
    states, embedding, sample = torch.randn(2, CONTEXT, WIDTH), torch.randn(2, WIDTH), torch.randn(2, WIDTH)
    mask = torch.ones(2, CONTEXT, dtype=torch.int64)
    mask[1, 5:] = 0
    memory = PriorPrompt(prior)(states, embedding, mask)
    for step in (999, 20, 0):
        expected = whole(sample, step, embedding, states, mask.bool()).predicted_image_embedding
        found = PriorStep(prior)(sample, torch.full((2,), float(step)), *memory)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_step_of_the_prior_reads_three_tokens(folder: Path) -> None:
    graph = Bundle.open(folder).manifest.graphs["prior"]
    assert {t.name for t in graph.inputs} >= {"sample", "timestep", "prior_bias", "prior_key.0", "prior_value.1"}
    assert not {"prompt_states", "text_embedding"} & {t.name for t in graph.inputs}


@pytest.mark.parametrize(
    ("setting", "value"), [("added_emb_type", None), ("norm_in_type", "layer"), ("embedding_proj_dim", 8)]
)
def test_priors_of_other_models_are_refused(setting: str, value: object) -> None:
    with pytest.raises(VlrtError, match=f"the prior has `{setting}`"):
        prior_sizes({setting: value})


# --- the bundle


def test_the_bundle_says_what_it_can(folder: Path) -> None:
    described = Bundle.open(folder).manifest
    assert described.tasks == ("generate", "variations", "interpolate")
    assert described.diffusion is not None
    assert [stage.name for stage in described.diffusion.stages] == ["prior", "decoder", "super_resolution"]
    stages = {line.stage for line in described.certificate}
    assert {"picture.generate", "picture.variations"} <= stages
    assert all(line.passed for line in described.certificate)


def test_a_folder_for_variations_alone_has_no_prior(karlo: Path, tmp_path: Path) -> None:
    index = json.loads((karlo / "model_index.json").read_text("utf-8"))
    folder = copied(karlo, tmp_path, lambda name: name not in ("prior", "prior_scheduler"))
    (folder / "model_index.json").write_text(
        json.dumps({name: value for name, value in index.items() if not name.startswith("prior")}), "utf-8"
    )
    plan = build(Request("variations", zoo.entry("unclip"), str(folder)))
    assert plan.tasks == ("variations", "interpolate")
    assert "prior" not in [graph.role for graph in plan.graphs]


def test_the_image_encoder_may_lie_elsewhere(karlo: Path, tmp_path: Path) -> None:
    folder = copied(karlo, tmp_path, lambda name: name not in ("image_encoder", "feature_extractor"))
    entry = zoo.entry("unclip")
    assert build(Request("a", entry, str(folder))).tasks == ("generate",)
    both = build(Request("b", entry, str(folder), options={"image_encoder": str(karlo)}))
    assert both.tasks == ("generate", "variations", "interpolate")


def test_a_folder_of_another_kind_is_refused(karlo: Path, tmp_path: Path) -> None:
    folder = copied(karlo, tmp_path, lambda name: name not in ("prior", "image_encoder"))
    with pytest.raises(VlrtError, match="has neither `prior` nor `image_encoder`"):
        build(Request("other", zoo.entry("unclip"), str(folder)))


def test_a_picture_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    options = ["--model", str(folder), "--seed", "3", "--steps", "2", "-o", str(tmp_path / "a.png")]
    main(["run", "generate", "a dog", *options])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (32, 32)


def test_the_same_picture_on_openvino(folder: Path) -> None:
    from vlrt.engines import EngineOptions

    bundle = Bundle.open(folder)
    found = [Painter(bundle, EngineOptions(d, 1))("a dog", seed=1, steps=STEPS) for d in ("cpu", "openvino:CPU:fp32")]
    assert psnr(found[0].pixels, found[1].pixels) >= 50


def copied(source: Path, target: Path, wanted: Callable[[str], bool]) -> Path:
    """A folder of links to those components that are wanted."""
    folder = target / "pipeline"
    folder.mkdir()
    for path in source.iterdir():
        if path.is_dir() and wanted(path.name):
            (folder / path.name).symlink_to(path)
    (folder / "model_index.json").write_bytes((source / "model_index.json").read_bytes())
    return folder
