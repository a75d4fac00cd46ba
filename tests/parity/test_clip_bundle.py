"""Whole CLIP bundles: exported from files of both layouts, then run by the runtime against the references."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.errors import UsageError, VlrtError
from vlrt.manifest import Manifest
from vlrt.prompts import LearnedPrompts
from vlrt.tasks.classify import Classifier
from vlrt.tasks.embed import Embedder
from vlrt.text import TextTruncatedWarning
from vlrt.verify import verify
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.clip_prompts import convert_prompts
from vlrt_export.image_checks import noise_picture
from vlrt_export.modules.clip import randomise
from vlrt_export.request import Request, build

GOLDEN = Path(__file__).parents[1] / "golden"
ENTRY = Entry("clip", ("embed", "classify", "match", "search"), "tiny")


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


original, coop = _load("clip_original"), _load("clip_coop")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def export(request: Request, folder: Path) -> Manifest:
    with warnings.catch_warnings():
        # Tiny contexts cut the sentences that goldens are made with.
        warnings.simplefilter("ignore", TextTruncatedWarning)
        return write_bundle(build(request), folder)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path]:
    """A bundle of OpenAI's layout with a residual network, the golden's formula weights and its few merges."""
    folder = tmp_path_factory.mktemp("resnet")
    shapes = json.loads(np.load(GOLDEN / "clip_original.npz")["rn-narrow/shapes"].tobytes())
    state = {key: torch.from_numpy(original.weight(key, tuple(shape))) for key, shape in shapes.items()}
    torch.save(state, folder / "RN.pt")
    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(original.merges_file())
    request = Request("rn", ENTRY, str(folder / "RN.pt"), options={"tokenizer": str(folder)})
    return export(request, folder / "rn"), folder / "rn"


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Path, CLIPModel, Path]:
    """A bundle of transformers' layout with a vision transformer, beside the reference and its folder."""
    folder = tmp_path_factory.mktemp("transformer")
    text = {"vocab_size": 600, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 24, "eos_token_id": 529}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    reference = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=40)).eval()
    randomise(reference, 3)
    (folder / "hf").mkdir()
    reference.save_pretrained(folder / "hf")
    CLIPImageProcessor(size={"shortest_edge": 36}, crop_size=32).save_pretrained(folder / "hf")
    original_vocabulary(folder / "hf")
    manifest = export(Request("vit", ENTRY, str(folder / "hf")), folder / "vit")
    return manifest, folder / "vit", reference, folder / "hf"


def original_vocabulary(folder: Path) -> None:
    from vlrt_export.clip_tokenizer import find_tokenizer

    (folder / "bpe_simple_vocab_16e6.txt.gz").write_bytes(original.merges_file())
    vocab = find_tokenizer(None, str(folder)).tokenizer.get_vocab()
    (folder / "bpe_simple_vocab_16e6.txt.gz").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{original.MERGES}\n", "utf-8")


def test_certificate_has_every_rung(transformer: tuple[Manifest, Path, CLIPModel, Path]) -> None:
    manifest = transformer[0]
    stages = {line.stage: line for line in manifest.certificate}
    assert set(stages) == {
        "image_encoder.image_embedding",
        "text_encoder.text_embedding",
        "pixels",
        "ids",
        "image embeddings",
        "text embeddings",
        "logits",
    }
    assert all(line.passed for line in manifest.certificate)
    assert stages["pixels"].value == 0
    assert stages["ids"].value == 0
    assert manifest.source.revision.startswith("sha256:")
    assert manifest.embed is not None
    assert manifest.embed.scale == pytest.approx(float(transformer[2].logit_scale.detach().exp()))


@pytest.mark.parametrize("kernels", ["", "always"])
def test_runtime_agrees_with_the_reference(
    transformer: tuple[Manifest, Path, CLIPModel, Path], kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLRT_KERNELS", kernels)  # these graphs are too small for ours to be prepared unasked
    _, folder, reference, source = transformer
    photographs = [noise_picture(90, 51), noise_picture(40, 77), noise_picture(36, 36)]
    sentences = ["the dog", "a photo of the cat and the dog", "it's 42!", "a dog " * 40]
    with pytest.warns(TextTruncatedWarning, match="a dog a dog"):
        found = Embedder(Bundle.open(folder))(photographs, sentences)
    tokenizer, processor = CLIPTokenizerFast.from_pretrained(source), CLIPImageProcessor.from_pretrained(source)
    ids = tokenizer(sentences, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**ids, **processor(photographs, return_tensors="pt"))
    np.testing.assert_allclose(found.images, expected.image_embeds, atol=1e-4)
    np.testing.assert_allclose(found.texts, expected.text_embeds, atol=1e-4)
    np.testing.assert_allclose(found.logits, expected.logits_per_image, atol=1e-3)
    assert found.similarity.shape == (7, 7)


def test_batches_and_single_inputs_agree(transformer: tuple[Manifest, Path, CLIPModel, Path]) -> None:
    encoder = DualEncoder(Bundle.open(transformer[1]))
    photographs = [noise_picture(30 + i, 40) for i in range(5)]
    together = encoder.images(photographs)
    alone = np.concatenate([encoder.images([photograph]) for photograph in photographs])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    sentences = ["dog", "a photo of the cat and the dog", "it's the cat"]
    padded = encoder.texts(sentences)
    np.testing.assert_allclose(padded, np.concatenate([encoder.texts([s]) for s in sentences]), atol=1e-5)


def test_residual_network_agrees_with_the_original(resnet: tuple[Manifest, Path]) -> None:
    encoder = DualEncoder(Bundle.open(resnet[1]))
    golden = np.load(GOLDEN / "clip_original.npz")
    pixels = original.pictures(64).astype(np.float32)
    images = encoder.sessions.run_chain(("image_encoder",), {"pixels": pixels})["image_embedding"]
    texts = encoder.token_ids(original.token_ids())
    np.testing.assert_allclose(images, golden["rn-narrow/image"], atol=1e-4)
    np.testing.assert_allclose(texts, golden["rn-narrow/text"], atol=1e-4)
    np.testing.assert_allclose(encoder.spec.scale * images @ texts.T, golden["rn-narrow/logits"], atol=1e-3)
    assert [line.stage for line in resnet[0].certificate][2:] == ["pixels", "ids"]
    assert resnet[0].source.origin == "RN.pt"
    assert resnet[0].image is not None
    assert resnet[0].image.crop_rounding == "half_even"


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("own", [False, True])
def test_learned_prompts_agree_with_coop(
    own: bool, position: str, resnet: tuple[Manifest, Path], tmp_path: Path
) -> None:
    state = {"ctx": torch.from_numpy(coop.context(own)), "token_prefix": torch.zeros(3, 1, 128)}
    torch.save({"state_dict": state, "epoch": 50, "val_result": np.float64(0.5)}, tmp_path / "model.pth.tar-50")
    (tmp_path / "labels.txt").write_text("\n".join(coop.LABELS), "utf-8")
    convert_prompts(str(tmp_path / "model.pth.tar-50"), tmp_path / "ctx.npz", position, tmp_path / "labels.txt")
    learned = LearnedPrompts.open(tmp_path / "ctx.npz")
    assert learned.labels == tuple(coop.LABELS)
    bank = Classifier(Bundle.open(resnet[1])).bank(learned.labels, prompts=learned, cache=False)
    expected = np.load(GOLDEN / "clip_coop.npz")[f"{'own' if own else 'all'}/{position}"]
    np.testing.assert_allclose(bank.vectors, expected, atol=1e-4)


def test_learned_prompts_that_do_not_fit(resnet: tuple[Manifest, Path]) -> None:
    classifier = Classifier(Bundle.open(resnet[1]))
    with pytest.raises(VlrtError, match="width 64, the model's tokens have 128"):
        classifier.bank("a, b", prompts=LearnedPrompts(np.zeros((4, 64), np.float32)), cache=False)
    own = LearnedPrompts(np.ones((3, 4, 128), np.float32), labels=("a", "b", "c"))
    with pytest.raises(VlrtError, match="not those that the prompts were learned for"):
        classifier.bank("a, c, b", prompts=own, cache=False)
    with pytest.raises(VlrtError, match="for 3 labels of their own, got 2"):
        classifier.bank("a, b", prompts=LearnedPrompts(own.vectors), cache=False)
    with pytest.raises(UsageError, match="exclude each other"):
        classifier.bank("a, b", ["{}"], LearnedPrompts(np.ones((4, 128), np.float32)))


def test_goldens_verify(transformer: tuple[Manifest, Path, CLIPModel, Path], resnet: tuple[Manifest, Path]) -> None:
    for folder in (transformer[1], resnet[1]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TextTruncatedWarning)
            lines = list(verify(Bundle.open(folder)))
        assert lines
        assert all(line.passed for line in lines)


def test_random_weights_follow_the_seed() -> None:
    options = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "text_width": 64, "text_layers": 1}
    options |= {"dimension": 16, "vocabulary": 600}
    first, again, other = (build(Request("x", ENTRY, None, True, seed, options)) for seed in (1, 1, 2))
    weights = [plan.graphs[0].module.state_dict()["visual.proj"] for plan in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.source.origin == "random"
    assert "stand-in" in first.source.note
    assert "latency" in first.card
