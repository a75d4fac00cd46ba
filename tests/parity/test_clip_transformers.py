"""Our CLIP against transformers' `CLIPModel`, `CLIPImageProcessor` and `CLIPTokenizerFast`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

from vlrt import image as pictures
from vlrt.errors import VlrtError
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.clip_checkpoint import load_clip
from vlrt_export.clip_image import image_spec, original_image_spec
from vlrt_export.clip_reference import SENTENCES, noise_picture, to_transformers, transformers_config
from vlrt_export.clip_tokenizer import byte_pair, find_tokenizer, stand_in
from vlrt_export.modules.clip import Clip, ImageEmbedding, TextEmbedding, randomise

GOLDEN = Path(__file__).parents[1] / "golden"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


formula = _load(GOLDEN / "clip_original.py")
ODD_SIZES = ((33, 47), (47, 33), (32, 32), (31, 100), (100, 31), (500, 333), (64, 35), (35, 64), (1, 1), (640, 1))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(act: str, end: int, **vision: Any) -> CLIPConfig:
    text = {"vocab_size": 530, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 20, "hidden_act": act, "eos_token_id": end}
    image = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 3}
    image |= {"image_size": 32, "patch_size": 8, "hidden_act": act, "layer_norm_eps": 1e-4}
    return CLIPConfig(text_config=text, vision_config=image | vision, projection_dim=40)


def write_folder(folder: Path, settings: CLIPConfig, seed: int, **save: Any) -> CLIPModel:
    torch.manual_seed(seed)
    model = CLIPModel(settings).eval()
    randomise(model, seed)
    model.save_pretrained(folder, **save)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    write_slow_tokenizer(folder)
    return model


def write_slow_tokenizer(folder: Path) -> None:
    """The two files of a slow-only folder, with the vocabulary the goldens use."""
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(formula.merges_file())
    vocab = find_tokenizer(None, str(folder)).tokenizer.get_vocab()
    (folder / "bpe_simple_vocab_16e6.txt.gz").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{formula.MERGES}\n", "utf-8")


def embed(model: Clip, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    context = torch.zeros(len(ids), 1, model.sizes.text.transformer.width)
    with torch.no_grad():
        return ImageEmbedding(model)(pixels), TextEmbedding(model)(ids, context, torch.full_like(ids, -1))


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [2, 529])
@pytest.mark.parametrize("vision", [{}, {"patch_size": 4, "num_hidden_layers": 1}, {"num_attention_heads": 1}])
def test_embeddings_and_logits(act: str, end: int, vision: dict[str, int], tmp_path: Path) -> None:
    reference = write_folder(tmp_path, config(act, end, **vision), seed=end)
    model = load_clip(open_checkpoint(tmp_path))
    tokenizer = CLIPTokenizerFast.from_pretrained(tmp_path)
    photographs = [noise_picture(*size) for size in ((50, 40), (33, 90), (32, 32))]
    pixels = CLIPImageProcessor.from_pretrained(tmp_path)(photographs, return_tensors="pt")["pixel_values"]
    ids = tokenizer(list(SENTENCES), padding=True, truncation=True, max_length=20, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**ids, pixel_values=pixels)
    image, text = embed(model, pixels, ids["input_ids"])
    assert expected.image_embeds.std(0).mean() > 0.01
    assert expected.text_embeds.std(0).mean() > 0.01
    np.testing.assert_allclose(image, expected.image_embeds, atol=1e-5)
    np.testing.assert_allclose(text, expected.text_embeds, atol=1e-5)
    logits = model.logit_scale.detach().exp() * image @ text.t()
    np.testing.assert_allclose(logits, expected.logits_per_image, atol=1e-4)


@pytest.mark.parametrize("save", [{"safe_serialization": False}, {"max_shard_size": "100KB"}])
def test_every_form_of_the_weights(save: dict[str, Any], tmp_path: Path) -> None:
    reference = write_folder(tmp_path, config("gelu", 529), 5, **save)
    weights = to_transformers(load_clip(open_checkpoint(tmp_path)))
    assert set(weights) == set(reference.state_dict())
    for name, tensor in reference.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_configuration_is_read_back(tmp_path: Path) -> None:
    settings = config("gelu", 2)
    write_folder(tmp_path, settings, 0)
    found = transformers_config(load_clip(open_checkpoint(tmp_path)).sizes)
    for tower in ("text_config", "vision_config"):
        ours, theirs = getattr(found, tower).to_dict(), getattr(settings, tower).to_dict()
        assert {key: ours[key] for key in theirs if key in ours} == ours
        for key in ("hidden_size", "num_attention_heads", "hidden_act", "layer_norm_eps", "intermediate_size"):
            assert ours[key] == theirs[key], key


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize(("edge", "crop", "resample"), [(32, 32, 3), (40, 32, 3), (35, 32, 2), (32, 32, 1)])
def test_pixels_are_equal_to_the_bit(size: tuple[int, int], edge: int, crop: int, resample: int) -> None:
    settings = {"size": {"shortest_edge": edge}, "crop_size": {"height": crop, "width": crop}, "resample": resample}
    # A picture one pixel high must be told apart from one of three channels.
    processor = CLIPImageProcessor(**settings)
    expected = processor(noise_picture(*size), return_tensors="np", input_data_format="channels_last")["pixel_values"]
    found = pictures.preprocess([noise_picture(*size)], image_spec(settings, crop))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("settings", [{"size": 32, "crop_size": 32}, {"size": {"height": 32, "width": 32}}, {}])
def test_processor_files_of_all_ages(settings: dict[str, Any]) -> None:
    picture = noise_picture(50, 41)
    defaults = {"size": {"shortest_edge": 32}, "crop_size": 32}
    expected = CLIPImageProcessor(**(defaults | settings))(picture, return_tensors="np")["pixel_values"]
    assert np.array_equal(pictures.preprocess([picture], image_spec(settings, 32)), expected)


@pytest.mark.parametrize("size", ODD_SIZES)
def test_original_preprocessing(size: tuple[int, int]) -> None:
    """Resize and CenterCrop as torchvision defines them, computed here with Pillow and plain numbers."""
    picture, n_px = noise_picture(*size), 32
    width, height = picture.size
    if width <= height:
        resized = picture.resize((n_px, int(n_px * height / width)), Image.Resampling.BICUBIC)
    else:
        resized = picture.resize((int(n_px * width / height), n_px), Image.Resampling.BICUBIC)
    left, top = round((resized.width - n_px) / 2.0), round((resized.height - n_px) / 2.0)
    spec = original_image_spec(n_px)
    values = torch.from_numpy(np.array(resized.crop((left, top, left + n_px, top + n_px)))).permute(2, 0, 1) / 255
    expected = (values - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    np.testing.assert_allclose(pictures.preprocess([picture], spec)[0], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{"do_normalize": False}, {"crop_size": 16}, {"resample": 9}, {"image_mean": [1]}, {"size": "large"}],
)
def test_processors_beyond_clip_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(VlrtError, match=r"preprocessor_config.json"):
        image_spec(settings, 32)


def test_slow_only_folder_gives_the_fast_tokenizer(tmp_path: Path) -> None:
    write_slow_tokenizer(tmp_path)
    reference = CLIPTokenizerFast.from_pretrained(tmp_path)
    checkpoint = Checkpoint({}, {}, tmp_path, (), "slow")
    ours = find_tokenizer(checkpoint, None)
    sentences = [*SENTENCES, *formula.SENTENCES, "<|endoftext|> the <|STARTOFTEXT|> dog", "e\u0301 ﬁ \u2028 x\x00y"]
    for sentence in sentences:
        found = ours.tokenizer.encode(sentence, add_special_tokens=True).ids
        assert found == reference(sentence)["input_ids"], sentence
    assert ours.pad_id == reference.pad_token_id


def test_fast_folder_and_its_padding(tmp_path: Path) -> None:
    write_slow_tokenizer(tmp_path)
    reference = CLIPTokenizerFast.from_pretrained(tmp_path, pad_token="!")
    reference.save_pretrained(tmp_path / "fast")
    found = find_tokenizer(Checkpoint({}, {}, tmp_path / "fast", (), "fast"), None)
    assert found.pad_id == reference.pad_token_id == 0
    assert found.tokenizer.to_str() == reference.backend_tokenizer.to_str()


def test_stand_in_tokenizer_covers_any_text() -> None:
    found = stand_in(600)
    spec = found.text_spec(20, 600)
    ids = found.tokenizer.encode("Any text: 犬 and \x07!", add_special_tokens=False).ids
    assert ids
    assert max(ids) < min(spec.start_id or 0, spec.end_id or 0)
    assert "stand-in" in found.note
    with pytest.raises(VlrtError, match="too small"):
        stand_in(100)


def test_tokenizers_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VlrtError, match="has 514 ids, the model 400"):
        stand_in(600).text_spec(20, 400)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(VlrtError, match="is not a tokenizer"):
        find_tokenizer(None, str(tmp_path))
    with pytest.raises(VlrtError, match="does not exist"):
        find_tokenizer(None, str(tmp_path / "nothing"))

    def offline(*_: object, **__: object) -> None:
        raise VlrtError("no network")

    monkeypatch.setattr("vlrt_export.clip_tokenizer.find_spec", lambda _: None)
    monkeypatch.setattr("vlrt_export.hub.fetch", offline)
    with pytest.raises(VlrtError, match="brings no vocabulary") as caught:
        find_tokenizer(None, None)
    assert "--tokenizer" in caught.value.hint


def test_vocabulary_without_clips_specials_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version\n")
    with pytest.raises(VlrtError, match="not CLIP's"):
        find_tokenizer(None, str(tmp_path))
    assert byte_pair({"a</w>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, []).encode("a").ids == [1, 0, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "siglip"}, "is a `siglip` model, expected `clip`"),
        ({"text_config": {"hidden_act": "relu"}}, "activation `relu`"),
        ({"text_config": {"num_attention_heads": 7}}, "is not CLIP's"),
        ({"projection_dim": 41}, "has shape"),
    ],
)
def test_other_configurations_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_folder(tmp_path, config("gelu", 2), 0)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    for key, value in change.items():
        settings[key] = settings[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(settings))
    with pytest.raises(VlrtError, match=message):
        load_clip(open_checkpoint(tmp_path))
    path.unlink()
    with pytest.raises(VlrtError, match=r"has no config.json"):
        load_clip(open_checkpoint(tmp_path))
