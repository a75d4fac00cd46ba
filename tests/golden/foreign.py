"""Makes the folders `foreign_*/`: tiny random models as Optimum's own exporter writes them, each with what transformers
gives on fixed pictures.

Needs an environment of its own: pip install optimum-onnx==0.1.0 transformers==4.57.6 torch==2.13.0 onnxruntime==1.31.1
Then: python tests/golden/foreign.py
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from optimum.exporters.onnx import main_export, onnx_export_from_model
from optimum.exporters.onnx.model_configs import CLIPTextWithProjectionOnnxConfig, CLIPVisionModelOnnxConfig
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HERE = Path(__file__).parent
WORDS, SIDE, PICTURES = 61, 16, 3
SETTINGS = {
    "greedy": {"num_beams": 1, "max_new_tokens": 10},
    "beam 3": {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 10},
    "beam 5": {"num_beams": 5, "num_return_sequences": 2, "max_new_tokens": 8, "length_penalty": 0.5},
}
PROMPT = (0, 17, 9)


def picture(seed: int) -> Image.Image:
    """As `tests/parity/test_foreign.py` makes them again."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    return Image.fromarray(noise).resize((44, 36), Image.Resampling.BICUBIC)


def gpt2(layers: int) -> transformers.PretrainedConfig:
    return transformers.GPT2Config(
        vocab_size=WORDS, n_positions=48, n_embd=16, n_layer=layers, n_head=2, add_cross_attention=True,
        is_decoder=True, bos_token_id=0, eos_token_id=0, pad_token_id=0, initializer_range=0.6,
    )  # fmt: skip


def trocr() -> transformers.PretrainedConfig:
    return transformers.TrOCRConfig(
        vocab_size=WORDS, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, init_std=0.8,
        max_position_embeddings=48, cross_attention_hidden_size=16, use_learned_position_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=2,
    )  # fmt: skip


def clip() -> transformers.CLIPModel:
    torch.manual_seed(4)
    text = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": WORDS - 1}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return transformers.CLIPModel(config).eval()


def model(decoder: transformers.PretrainedConfig, seed: int) -> transformers.VisionEncoderDecoderModel:
    """Random weights wide enough that the picture decides the words."""
    torch.manual_seed(seed)
    encoder = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=SIDE,
        patch_size=8, initializer_range=0.6,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = decoder.decoder_start_token_id or decoder.bos_token_id
    config.pad_token_id, config.eos_token_id = decoder.pad_token_id, decoder.eos_token_id
    return transformers.VisionEncoderDecoderModel(config).eval()


def tokenizer(last: tuple[str, ...] = ()) -> transformers.PreTrainedTokenizerFast:
    """One token a word, its own letters; the first three are special, and `last` at the end."""
    words = ["<s>", "<pad>", "</s>", *(f"w{i}" for i in range(3, WORDS - len(last))), *last]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<s>",
        additional_special_tokens=list(last),
    )  # fmt: skip


def expected(reference: transformers.VisionEncoderDecoderModel, processor: transformers.ViTImageProcessor) -> dict:
    """Sequences and scores of transformers' own `generate`, for a batch of pictures, and for one with a prompt."""
    pixels = processor([picture(seed) for seed in range(PICTURES)], return_tensors="pt").pixel_values
    found = {"versions": {"transformers": transformers.__version__, "torch": torch.__version__}}
    found["pixels"] = [round(float(v), 6) for v in pixels.flatten()[::97]]
    start = reference.config.decoder_start_token_id
    for name, setting in SETTINGS.items():
        found[name] = sequences(reference, {"pixel_values": pixels}, setting, 1)
        prompt = torch.tensor([[start, *PROMPT[1:]]] * PICTURES)
        given = {"pixel_values": pixels, "decoder_input_ids": prompt}
        found[f"{name}, prompt"] = sequences(reference, given, setting, len(PROMPT))
    return found


def sequences(reference: transformers.VisionEncoderDecoderModel, given: dict, setting: dict, skip: int) -> list[dict]:
    end = reference.config.eos_token_id
    with torch.no_grad():
        out = reference.generate(**given, **setting, do_sample=False, return_dict_in_generate=True, output_scores=True)
    scores = out.sequences_scores.tolist() if setting["num_beams"] > 1 else [None] * len(out.sequences)
    rows = []
    for row, score in zip(out.sequences[:, skip:].tolist(), scores):
        stop = row.index(end) + 1 if end in row else len(row)
        rows.append({"tokens": row[:stop], "score": score})
    return rows


def export(
    name: str, decoder: transformers.PretrainedConfig, seed: int, merged: bool, keep_weights: bool = False
) -> None:
    reference = model(decoder, seed)
    processor = transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as written:
        for part in (reference, processor, tokenizer()):
            part.save_pretrained(source)
        main_export(
            source, written, task="image-to-text-with-past", no_post_process=not merged, do_validation=False, opset=18
        )
        target = HERE / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        superseded = {"decoder_model.onnx", "decoder_with_past_model.onnx"} if merged else set()
        if keep_weights:
            shutil.copyfile(Path(source) / "model.safetensors", target / "model.safetensors")
        for path in sorted(Path(written).iterdir()):
            if path.name not in superseded | {"vocab.json", "special_tokens_map.json"}:
                shutil.copyfile(path, target / path.name)
    (target / "golden.json").write_text(json.dumps(expected(reference, processor)) + "\n", "utf-8")


class ProjectedVision(CLIPVisionModelOnnxConfig):
    """CLIP's image tower with its projection, as transformers.js exports it."""

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"image_embeds": {0: "batch_size"}}


def export_clip(name: str) -> None:
    """Both towers by themselves, under the names and in the folder of transformers.js."""
    reference, target = clip(), HERE / name
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    shutil.rmtree(target, ignore_errors=True)
    (target / "onnx").mkdir(parents=True)
    for section in (reference.config.text_config, reference.config.vision_config):
        section.projection_dim = reference.config.projection_dim
    text, vision = reference.config.text_config, reference.config.vision_config
    towers = {
        "text_model": (transformers.CLIPTextModelWithProjection(text), CLIPTextWithProjectionOnnxConfig),
        "vision_model": (transformers.CLIPVisionModelWithProjection(vision), ProjectedVision),
    }
    for stem, (tower, description) in towers.items():
        tower.load_state_dict({k: v for k, v in reference.state_dict().items() if k in tower.state_dict()})
        with tempfile.TemporaryDirectory() as written:
            onnx_export_from_model(
                tower.eval(), written, task="feature-extraction", do_validation=False, opset=18,
                custom_onnx_configs={"model": description(tower.config, task="feature-extraction")},
            )  # fmt: skip
            shutil.copyfile(Path(written) / "model.onnx", target / "onnx" / f"{stem}.onnx")
    for part in (reference.config, processor):
        part.save_pretrained(target)
    with tempfile.TemporaryDirectory() as source:
        tokenizer(("<|startoftext|>", "<|endoftext|>")).save_pretrained(source)
        shutil.copyfile(Path(source) / "tokenizer.json", target / "tokenizer.json")
    pixels = processor([picture(seed) for seed in range(PICTURES)], return_tensors="pt").pixel_values
    ids = torch.tensor([[WORDS - 2, *words, WORDS - 1] for words in ((5, 9, 12), (20, 4, 33))])
    with torch.no_grad():
        found = reference(input_ids=ids, pixel_values=pixels)
    golden = {"pixels": [round(float(v), 6) for v in pixels.flatten()[::97]], "sentences": ["w5 w9 w12", "w20 w4 w33"]}
    golden |= {"image": found.image_embeds.tolist(), "text": found.text_embeds.tolist()}
    (target / "golden.json").write_text(json.dumps(golden) + "\n", "utf-8")


def export_joint_clip(name: str) -> None:
    """Both towers in one graph, as Optimum exports the whole model; the rest is that of the two towers."""
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with tempfile.TemporaryDirectory() as written:
        onnx_export_from_model(clip(), written, task="feature-extraction", do_validation=False, opset=18)
        shutil.copyfile(Path(written) / "model.onnx", target / "model.onnx")
    for file in ("config.json", "preprocessor_config.json", "tokenizer.json", "golden.json"):
        shutil.copyfile(HERE / "foreign_clip" / file, target / file)


def siglip() -> transformers.SiglipModel:
    torch.manual_seed(5)
    text = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 16, "projection_size": 16}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": SIDE, "patch_size": 8}
    model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def export_siglip(name: str) -> None:
    """Both towers in one graph, as Optimum exports the whole model; its texts are padded to the context."""
    reference, target = siglip(), HERE / name
    processor = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as written:
        made = tokenizer()
        made.pad_token = "</s>"  # as the published ones pad with the end
        for part in (reference, processor, made):
            part.save_pretrained(source)
        onnx_export_from_model(reference, written, task="feature-extraction", do_validation=False, opset=18)
        shutil.copyfile(Path(written) / "model.onnx", target / "model.onnx")
        for file in ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(Path(source) / file, target / file)
        shutil.copyfile(Path(source) / "model.safetensors", target / "model.safetensors")
    pixels = processor([picture(seed) for seed in range(PICTURES)], return_tensors="pt").pixel_values
    ids = torch.tensor([[*words, *[2] * (16 - len(words))] for words in ((5, 9, 12), (20, 4, 33, 8))])
    with torch.no_grad():
        found = reference(input_ids=ids, pixel_values=pixels)
    golden = {
        "pixels": [round(float(v), 6) for v in pixels.flatten()[::97]],
        "sentences": ["w5 w9 w12", "w20 w4 w33 w8"],
    }
    golden |= {"image": found.image_embeds.tolist(), "text": found.text_embeds.tolist()}
    (target / "golden.json").write_text(json.dumps(golden) + "\n", "utf-8")


if __name__ == "__main__":
    export("foreign_merged", gpt2(2), 15, merged=True, keep_weights=True)
    export("foreign_two_files", gpt2(1), 2, merged=False)
    export("foreign_trocr", trocr(), 34, merged=True)
    export_clip("foreign_clip")
    export_joint_clip("foreign_clip_joint")
    export_siglip("foreign_siglip")
