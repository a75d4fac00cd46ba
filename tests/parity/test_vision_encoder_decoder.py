"""Captions of ViT, DeiT and Swin with GPT-2, BERT and RoBERTa against transformers' `VisionEncoderDecoderModel`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, generate
from vlrt.errors import VlrtError
from vlrt.tasks.caption import Captioner
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.families import vision_encoder_decoder as family
from vlrt_export.generate_reference import compare, expected_sequences
from vlrt_export.request import Request

SEEDS = range(8)
VOCABULARY, PAD, START, END, SIDE = 80, 1, 0, 2, 16
PAIRS = ("vit-gpt2", "deit-bert", "swin-roberta")


def configuration(pair: str) -> Any:
    """Tiny shapes; the encoder of the first pair is wider than its decoder."""
    vit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    vit |= {"image_size": SIDE, "patch_size": 4}
    ids = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD, "vocab_size": VOCABULARY}
    bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    bert |= ids | {"is_decoder": True, "add_cross_attention": True}
    encoders = {
        "vit": lambda: transformers.ViTConfig(**(vit | {"hidden_size": 40})),
        "deit": lambda: transformers.DeiTConfig(**vit, qkv_bias=False),
        "swin": lambda: transformers.SwinConfig(
            image_size=SIDE, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4
        ),
    }
    decoders = {
        "gpt2": lambda: transformers.GPT2Config(
            n_positions=40, n_embd=32, n_layer=2, n_head=4, add_cross_attention=True, is_decoder=True, **ids
        ),
        "bert": lambda: transformers.BertConfig(max_position_embeddings=40, **bert),
        "roberta": lambda: transformers.RobertaConfig(max_position_embeddings=42, **bert),
    }
    encoder, decoder = pair.split("-")
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoders[encoder](), decoders[decoder]()
    )
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = START, END, PAD
    return config


def reference(pair: str, seed: int) -> Any:
    """A model whose every weight is wide, so that the image matters; a traced encoder keeps its first weights."""
    torch.manual_seed(seed)
    model = transformers.VisionEncoderDecoderModel(configuration(pair)).eval()
    torch.manual_seed(0 if pair.startswith("swin") else seed)
    with torch.no_grad():
        widen(model.encoder)
        torch.manual_seed(seed)
        widen(model.decoder)
        if hasattr(model, "enc_to_dec_proj"):
            widen(model.enc_to_dec_proj)
        head = model.decoder.get_output_embeddings()
        if head.bias is not None:
            head.bias[END] += 2.0  # some captions end, and some do not
        else:
            head.weight[END] += 0.25 * model.decoder.transformer.ln_f.bias.sign()
    return model


def widen(module: Any) -> None:
    for name, parameter in module.named_parameters():
        norm = ("norm" in name.lower() or "ln_" in name) and name.endswith("weight")
        parameter.normal_(1.0 if norm else 0.0, 0.3 if parameter.ndim > 1 else 0.2)
        if "crossattention" in name and ("c_proj" in name or "output.dense" in name):
            parameter *= 3.0


def save(model: Any, pair: str, folder: Path) -> Path:
    model.save_pretrained(folder)
    if pair.endswith("bert") and "roberta" not in pair:
        words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", "a", "photo", *(f"word{i}" for i in range(73))]
        (folder / "vocab.txt").write_text("\n".join(words), "utf-8")
    else:
        letters = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "Ġ", "p", "h", "o", "t", *map(chr, range(192, 255))]
        (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), "utf-8")
        (folder / "merges.txt").write_text("#version: 0.2\nĠ a\n".replace("Ġ a\n", ""), "utf-8")
    processor(pair).save_pretrained(folder)
    return folder


def processor(pair: str) -> Any:
    """ViT's stretches to the model's pixels, DeiT's to more and crops."""
    if pair.startswith("deit"):
        sides = {"size": {"height": 20, "width": 22}, "crop_size": {"height": SIDE, "width": SIDE}}
        return transformers.DeiTImageProcessor(**sides)
    return transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})


def request(folder: Path) -> Request:
    return Request("tiny", Entry("vision-encoder-decoder", ("caption",), ""), str(folder))


@dataclass(frozen=True)
class Exported:
    pair: str
    bundle: Path
    models: list[tuple[Any, Any]]


@pytest.fixture(scope="module", params=PAIRS)
def exported(
    request: pytest.FixtureRequest, reweighed: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """A bundle of each pair, and per seed transformers' model and our graphs with its weights."""
    torch.set_num_threads(1)
    pair = request.param
    bundle = tmp_path_factory.mktemp("bundle") / "tiny"
    models = []
    for seed in SEEDS:
        model, folder = reference(pair, seed), tmp_path_factory.mktemp(f"{pair}{seed}")
        plan = family.build(make_request(save(model, pair, folder)))
        if seed == 0:
            write_bundle(plan, bundle)
        kept = ("image_encoder",) if pair.startswith("swin") else ()
        models.append((model, reweighed.Reweighed(bundle, plan, folder, kept)))
    return Exported(pair, bundle, models)


make_request = request


def pixels(seed: int, images: int) -> Any:
    return torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def ours(graphs: Any, seen: Any, prompts: list[list[int]], options: dict[str, Any]) -> Any:
    initial = graphs.run_chain(graphs.manifest.decode.chain, {"pixels": seen.numpy()})
    return generate(graphs.step(), initial, DecodeOptions(**options), prompts=prompts)


def theirs(model: Any, seen: Any, prompts: list[list[int]], options: dict[str, Any]) -> Any:
    def run(**chosen: Any) -> Any:
        return model.generate(seen, decoder_input_ids=torch.tensor(prompts), **chosen)

    return expected_sequences(run, len(prompts[0]), (END,), {"do_sample": False, **options})


@pytest.mark.parametrize(("images", "prompt"), [(1, 1), (3, 3)])
@pytest.mark.parametrize("beams", [1, 3, 5])
def test_sequences_and_scores(exported: Exported, beams: int, images: int, prompt: int) -> None:
    ended = set()
    for seed, (model, graphs) in enumerate(exported.models):
        seen, random = pixels(seed, images), np.random.default_rng(seed)
        prompts = [[START, *random.integers(5, VOCABULARY, prompt - 1).tolist()] for _ in range(images)]
        options = {"num_beams": beams, "num_return_sequences": beams, "max_new_tokens": 12}
        found = ours(graphs, seen, prompts, options)
        agreement = compare(found, theirs(model, seen, prompts, options))
        assert (agreement.different, agreement.ambiguous) == (0, 0), f"seed {seed}"
        assert agreement.score_error < 1e-4
        ended |= {hypothesis.finished for image in found for hypothesis in image}
    assert ended == {True, False}, "the models should end some captions and not others, or little is tested"


def test_prompts_of_different_lengths_equal_single_runs(exported: Exported) -> None:
    prompts = [[START], [START, 20, 30, 40, 50], [START, 60]]
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8}
    for seed, (model, graphs) in enumerate(exported.models[:3]):
        seen = pixels(seed, len(prompts))
        for i, found in enumerate(ours(graphs, seen, prompts, options)):
            agreement = compare([found], theirs(model, seen[i : i + 1], [prompts[i]], options))
            assert agreement.different == 0
            assert agreement.score_error < 1e-4


def test_different_images_give_different_captions(exported: Exported) -> None:
    """Or all of the above would be proven of models that do not look."""
    different = 0
    for seed, (_, graphs) in enumerate(exported.models):
        found = ours(graphs, pixels(seed, 2), [[START]] * 2, {"max_new_tokens": 10, "min_new_tokens": 10})
        assert abs(found[0][0].log_probability - found[1][0].log_probability) > 1e-3
        different += found[0][0].tokens != found[1][0].tokens
    assert different >= len(exported.models) / 2


def test_from_photograph_to_ids(exported: Exported, photograph: Callable[..., Image.Image]) -> None:
    captioner = Captioner(Bundle.open(exported.bundle))
    model = exported.models[0][0]
    pictures = [photograph(50, 30, seed=1), photograph(33, 47, seed=2)]
    seen = processor(exported.pair)(pictures, return_tensors="pt")["pixel_values"]
    options = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    expected = expected_sequences(lambda **chosen: model.generate(seen, **chosen), 1, (END,), options)
    found = captioner.batch(pictures, num_beams=3, max_new_tokens=8)
    assert [caption.tokens for caption in found] == [image[0].tokens for image in expected]


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    change(config)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["encoder"].update(model_type="resnet"), "image encoders of kind `resnet` are not known"),
        (lambda c: c["decoder"].update(model_type="xlnet"), "text decoders of kind `xlnet` are not known"),
        (lambda c: c["decoder"].update(n_layer=3), "lacks the tensor `decoder.transformer.h.2."),
        (lambda c: c["decoder"].update(n_layer=1), "unexpected tensor `decoder.transformer.h.1."),
        (
            lambda c: c["decoder"].update(n_head=8),
            "heads of 4 are not served, the cache's operator wants multiples of 8",
        ),
        (lambda c: c["decoder"].update(n_inner=7), r"has shape \[32, 128\], expected \[32, 7\]"),
        (lambda c: c.update(model_type="bert"), "is a `bert` model, expected `vision-encoder-decoder`"),
        (lambda c: c["decoder"].update(scale_attn_by_inverse_layer_idx=True), "is not served"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, change: Any, message: str) -> None:
    save(reference("vit-gpt2", 0), "vit-gpt2", tmp_path)
    change_config(tmp_path, change)
    with pytest.raises(VlrtError, match=message):
        family.build(make_request(tmp_path))
