"""IF against diffusers' pipelines on tiny random models: two stages of pixels and an x4 upscaler, one seed."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    IFPipeline,
    IFSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast, T5Config, T5EncoderModel, T5TokenizerFast

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions
from vlrt.errors import VlrtError
from vlrt.tasks.generate import Painter
from vlrt.tasks.upscale import Upscaler
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.clip_tokenizer import stand_in
from vlrt_export.diffusers_folder import Pipeline, open_pipeline
from vlrt_export.families import deepfloyd_if as family
from vlrt_export.if_reference import NEGATIVE, PROMPT, SEED, Reference
from vlrt_export.picture_checks import photograph, psnr
from vlrt_export.request import Request
from vlrt_export.sentencepiece_file import read_unigram, unigram
from vlrt_export.t5_prompt import find_t5_tokenizer

STATES, CONTEXT, END = 20, 24, 513
STEPS = {"base": 4, "super_resolution": 3, "upscaler": 2}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def spread(model: Any, seed: int) -> Any:
    """Random weights of a spread that leaves nothing zero: as made, the prediction would be."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.copy_(drawn * scale + (1 if "norm" in name and name.endswith("weight") else 0))
    return model.eval()


def unet(seed: int, size: int, kind: str, **more: Any) -> Any:
    """One level of IF's UNets: the prompt in the middle or in every block, and with the time; gelu throughout."""
    model = UNet2DConditionModel(
        sample_size=size, out_channels=6, block_out_channels=(16,), layers_per_block=1,
        down_block_types=(f"{kind}Block2D",),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn" if kind == "ResnetDownsample" else None,
        up_block_types=(f"{kind.replace('Down', 'Up')}Block2D",), cross_attention_dim=64, attention_head_dim=8,
        encoder_hid_dim=STATES, addition_embed_type="text", addition_embed_type_num_heads=2, act_fn="gelu",
        time_embedding_act_fn="gelu", resnet_time_scale_shift="scale_shift", resnet_skip_time_act=True,
        resnet_out_scale_factor=1.414, mid_block_scale_factor=1.414, cross_attention_norm="group_norm",
        norm_num_groups=8, **more,
    )  # fmt: skip
    return spread(model, seed)


def scheduler() -> Any:
    """IF's own, dynamic thresholding included."""
    return DDPMScheduler(
        num_train_timesteps=50, beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=True,
        thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5,
    )  # fmt: skip


def t5_tokenizer() -> Any:
    """As transformers has it: the end is added by the tokenizer."""
    made: Tokenizer = find_t5_tokenizer(None, 200)
    made.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return T5TokenizerFast(tokenizer_object=made, extra_ids=0, **special)


def clip_tokenizer(folder: Path) -> Any:
    path, end = folder / "clip.json", "<|endoftext|>"
    stand_in(END + 1).tokenizer.save(str(path))
    special = {"pad_token": end, "eos_token": end, "unk_token": end, "bos_token": "<|startoftext|>"}
    return CLIPTokenizerFast(tokenizer_file=str(path), model_max_length=40, **special)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three folders."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("if")
    found = {name: root / name for name in STEPS}
    config = T5Config(
        vocab_size=200, d_model=STATES, d_kv=6, d_ff=24, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    none = dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"))
    words = {"text_encoder": spread(T5EncoderModel(config), 1), "tokenizer": t5_tokenizer()}
    IFPipeline(
        **words,
        **none,
        unet=unet(2, 8, "SimpleCrossAttnDown", in_channels=3),
        scheduler=scheduler(),
        requires_safety_checker=False,
    ).save_pretrained(found["base"])
    IFSuperResolutionPipeline(
        text_encoder=None,
        tokenizer=None,
        **none,
        unet=unet(3, 16, "ResnetDownsample", in_channels=6, class_embed_type="timestep"),
        scheduler=scheduler(),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        requires_safety_checker=False,
    ).save_pretrained(found["super_resolution"])
    upscaler(root).save_pretrained(found["upscaler"])
    return found


def upscaler(root: Path) -> Any:
    latent = UNet2DConditionModel(
        sample_size=16, in_channels=7, out_channels=4, block_out_channels=(16,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), cross_attention_dim=16,
        attention_head_dim=8, num_class_embeds=1000, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, layers_per_block=1, sample_size=64,
    )  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=520, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=40, bos_token_id=512, eos_token_id=END,
    )  # fmt: skip
    return StableDiffusionUpscalePipeline(
        vae=spread(vae, 5),
        text_encoder=spread(CLIPTextModel(text), 6),
        tokenizer=clip_tokenizer(root),
        unet=spread(latent, 4),
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
        ),
    )


@pytest.fixture(scope="module")
def folder(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported bundle of all three."""
    target = tmp_path_factory.mktemp("bundle") / "if"
    write_bundle(family.build(request(sources)), target)
    return target


@pytest.fixture(scope="module")
def reference(sources: dict[str, Path]) -> Reference:
    return Reference(opened(sources), CONTEXT)


def opened(sources: dict[str, Path]) -> dict[str, Pipeline]:
    return {name: open_pipeline(str(path)) for name, path in sources.items()}


def request(sources: dict[str, Path], *names: str) -> Request:
    options = {name: str(path) for name, path in sources.items() if name != "base" and (name in names or not names)}
    return Request("if", zoo.entry("deepfloyd-if"), str(sources["base"]), options={**options, "context": CONTEXT})


# --- pictures


def test_the_same_seed_gives_the_reference_s_picture(folder: Path, reference: Reference) -> None:
    found = Painter(Bundle.open(folder))(PROMPT, negative=NEGATIVE, seed=SEED, steps=STEPS)
    assert found.picture.size == (64, 64)
    assert psnr(found.pixels, np.asarray(reference.picture((8, 8), STEPS))) >= 50


def test_ddim_in_the_stages_of_pixels_equals_the_reference_s(folder: Path, reference: Reference) -> None:
    """Diffusers wants to be told that the learned variance is left alone then."""
    ddim = DDIMScheduler.from_config({**scheduler().config, "variance_type": "fixed_small"})
    rules = {"base": "ddim", "super_resolution": "ddim"}
    options = {"seed": SEED, "steps": STEPS, "scheduler": rules}
    found = Painter(Bundle.open(folder))(PROMPT, negative=NEGATIVE, **options)
    expected = reference.picture((8, 8), STEPS, base=ddim, super_resolution=ddim)
    assert psnr(found.pixels, np.asarray(expected)) >= 50


def test_a_photograph_enlarged_by_the_later_stages_equals_the_reference_s(folder: Path, reference: Reference) -> None:
    start = photograph(8, 12)
    steps = {name: count for name, count in STEPS.items() if name != "base"}
    found = Upscaler(Bundle.open(folder))(start, PROMPT, negative=NEGATIVE, seed=SEED, steps=steps)
    assert found.picture.size == (96, 64)
    assert psnr(found.pixels, np.asarray(reference.picture((8, 12), STEPS, start))) >= 50


def test_words_negative_words_and_seed_decide_the_picture(folder: Path) -> None:
    painter = Painter(Bundle.open(folder))
    first = painter(PROMPT, seed=1, steps=STEPS)
    for other in (
        painter("two cats", seed=1, steps=STEPS),
        painter(PROMPT, negative="two cats", seed=1, steps=STEPS),
        painter(PROMPT, seed=2, steps=STEPS),
    ):
        assert psnr(first.pixels, other.pixels) < 40


def test_other_sizes_keep_the_stages_proportions(folder: Path) -> None:
    painting = Painter(Bundle.open(folder))("a dog", height=128, width=64, seed=1, steps=1)
    assert painting.picture.size == (64, 128)


def test_the_same_picture_on_openvino(folder: Path) -> None:
    bundle, steps = Bundle.open(folder), dict.fromkeys(STEPS, 2)
    found = [Painter(bundle, EngineOptions(d, 1))("a dog", seed=1, steps=steps) for d in ("cpu", "openvino:CPU:fp32")]
    assert psnr(found[0].pixels, found[1].pixels) >= 50


# --- the bundle


def test_the_bundle_says_what_it_can(folder: Path) -> None:
    described = Bundle.open(folder).manifest
    assert described.tasks == ("generate", "upscale")
    spec = described.diffusion
    assert spec is not None
    assert [stage.name for stage in spec.stages] == list(STEPS)
    base, second, third = spec.stages
    assert base.schedule.threshold is not None
    assert base.schedule.threshold.maximum == 1.5
    assert second.low_resolution is not None
    assert (second.low_resolution.noise_level, second.low_resolution.drawn) == (250, "after")
    assert third.low_resolution is not None
    assert (third.low_resolution.noise_level, third.low_resolution.drawn) == (100, "before")
    assert [prompt.chain for prompt in spec.prompts] == [("t5_encoder",), ("upscaler_text_encoder",)]
    assert [line.stage for line in described.certificate if not line.passed] == []
    assert {"picture.generate", "picture.upscale"} <= {line.stage for line in described.certificate}
    assert "super_resolution: super_resolution sha256:" in described.source.note


def test_fewer_folders_make_fewer_stages(sources: dict[str, Path]) -> None:
    for names, expected in ((("none",), ["base"]), (("super_resolution",), ["base", "super_resolution"])):
        plan = family.build(request(sources, *names))
        assert plan.diffusion is not None
        assert [stage.name for stage in plan.diffusion.stages] == expected
        assert plan.diffusion.stages[-1].output == f"{expected[-1]}_picture"


def test_folders_in_the_wrong_place_are_refused(sources: dict[str, Path]) -> None:
    for wrong, message in (
        ({"super_resolution": sources["base"]}, "`base` takes 3 channels, the stage super_resolution 6"),
        ({"upscaler": sources["super_resolution"]}, "`super_resolution` has no component `low_res_scheduler`"),
    ):
        with pytest.raises(VlrtError, match=message):
            family.build(request(sources | wrong))


# --- T5's tokenizer


def sentencepiece_file(pieces: list[tuple[str, float, int]], kind: int = 1) -> bytes:
    """A model as SentencePiece writes it: pieces, trainer's settings, an empty normaliser."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def all_fields() -> Iterator[bytes]:
        for text, score, sort in pieces:
            sorted_ = b"" if sort == 1 else b"\x18" + bytes([sort])
            yield field(1, field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + sorted_)
        yield field(2, b"\x18" + bytes([kind]) + varint(40 << 3) + b"\x02")
        yield field(3, field(1, b"identity"))

    return b"".join(all_fields())


PIECES = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("▁a", -1.0, 1), ("▁do", -2.0, 1), ("g", -3.0, 1)]


def test_t5_s_own_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(sentencepiece_file(PIECES))
    found = read_unigram(tmp_path / "spiece.model")
    expected = unigram([(text, score) for text, score, _ in PIECES], 2, extra_ids=100)
    for text in ("a dog", "  a   dog ", "agg x</s>", "<extra_id_0> dog"):
        assert found.encode(text, add_special_tokens=False).ids == expected.encode(text).ids or "</s>" in text
    assert found.encode("a dog", add_special_tokens=False).ids == [3, 4, 5]
    assert found.encode("a</s>", add_special_tokens=False).ids == [3, 1]
    assert found.token_to_id("<extra_id_99>") == len(PIECES)
    assert json.loads(found.to_str())["model"]["vocab"][4] == ["▁do", -2.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xff\xff", "is not a SentencePiece model"),
        (b"", "is not a Unigram model"),
        (sentencepiece_file(PIECES, kind=2), "is not a Unigram model"),
        (sentencepiece_file(PIECES)[:40], "is not a SentencePiece model"),
        (sentencepiece_file([("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), 0.0, 1)])[:-30], "is not"),
    ],
)
def test_files_that_are_none_of_t5_s(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(VlrtError, match=message):
        read_unigram(tmp_path / "spiece.model")


def test_a_folder_without_a_tokenizer_and_one_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(VlrtError, match="holds no tokenizer"):
        find_t5_tokenizer(tmp_path, 200)
    (tmp_path / "spiece.model").write_bytes(sentencepiece_file([("a", 0.0, 1), *PIECES]))
    with pytest.raises(VlrtError, match="is not T5's"):
        find_t5_tokenizer(tmp_path, 200)
