"""Zero-shot classification, its prompt bank, and embedding, on a tiny dual encoder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.errors import BundleError, ImageError, UsageError
from vlrt.prompt_bank import PromptBankWarning, PromptRequest, encode_labels, open_bank
from vlrt.prompts import LearnedPrompts
from vlrt.tasks.classify import Classifier
from vlrt.tasks.embed import Embedder

LABELS = ("dog", "cat", "red car")


@pytest.fixture(scope="module")
def bundle(tiny_bundle_folder: Path) -> Bundle:
    return Bundle.open(tiny_bundle_folder)


@pytest.fixture(scope="module")
def encoder(bundle: Bundle) -> DualEncoder:
    return DualEncoder(bundle)


def test_probabilities_are_the_softmax_of_scaled_cosines(
    bundle: Bundle, encoder: DualEncoder, photograph: Callable[..., Image.Image]
) -> None:
    picture = photograph(seed=4)
    found = Classifier(bundle)(picture, LABELS)
    cosines = encoder.texts(LABELS) @ encoder.images([picture])[0]
    odds = np.exp(encoder.spec.scale * cosines.astype(np.float64))
    assert [c.label for c in found.choices] == [LABELS[i] for i in np.argsort(-cosines)]
    for choice in found.choices:
        place = LABELS.index(choice.label)
        assert choice.score == pytest.approx(float(cosines[place]), abs=1e-6)
        assert choice.probability == pytest.approx(float(odds[place] / odds.sum()), abs=1e-6)
    assert (found.label, found.probability) == (found.choices[0].label, found.choices[0].probability)


def test_labels_in_one_string_top_and_batches(bundle: Bundle, photograph: Callable[..., Image.Image]) -> None:
    classifier = Classifier(bundle)
    pictures = [photograph(seed=seed) for seed in range(5)]
    bank = classifier.bank("dog, cat, red car")
    assert bank.labels == LABELS
    together = classifier.batch(pictures, bank, top=2)
    assert [len(found.choices) for found in together] == [2] * 5
    for picture, found in zip(pictures, together):
        alone = classifier(picture, LABELS, top=2)
        assert [c.label for c in alone.choices] == [c.label for c in found.choices]
    assert classifier.batch([], bank) == []
    with pytest.raises(UsageError, match="`top` is 0"):
        classifier(pictures[0], bank, top=0)
    with pytest.raises(UsageError, match="at least two"):
        classifier(pictures[0], "dog")
    with pytest.raises(ImageError):
        classifier("missing.jpg", bank)


def test_an_ensemble_is_the_normalised_mean(encoder: DualEncoder) -> None:
    templates = ("a {}", "the red {} runs", "{}")
    found = encode_labels(encoder, PromptRequest(LABELS, templates))
    for label, vector in zip(LABELS, found):
        mean = encoder.texts([template.replace("{}", label) for template in templates]).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_many_labels_keep_their_order(encoder: DualEncoder) -> None:
    labels = tuple(f"{'dog ' * (i % 7)}cat {'car ' * (i // 7)}".strip() for i in range(49))
    found = encode_labels(encoder, PromptRequest(labels, ("a {}",)))
    for place in (0, 1, 34, 48):
        np.testing.assert_allclose(found[place], encoder.texts([f"a {labels[place]}"])[0], atol=1e-5)


def test_bank_is_encoded_once(encoder: DualEncoder, tmp_path: Path) -> None:
    request = PromptRequest(LABELS, ("a {}",))
    first, second = open_bank(encoder, request, tmp_path), open_bank(encoder, request, tmp_path)
    assert (first.cached, second.cached) == (False, True)
    assert np.array_equal(first.vectors, second.vectors)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]


def test_key_depends_on_all_that_matters(encoder: DualEncoder) -> None:
    vectors = np.ones((2, 4), np.float32)
    requests = [
        PromptRequest(LABELS, ("a {}",)),
        PromptRequest(LABELS[::-1], ("a {}",)),
        PromptRequest(LABELS, ("the {}",)),
        PromptRequest(LABELS, ("a {}", "the {}")),
        PromptRequest(LABELS, learned=LearnedPrompts(vectors)),
        PromptRequest(LABELS, learned=LearnedPrompts(vectors, "front")),
        PromptRequest(LABELS, learned=LearnedPrompts(vectors * 2)),
        PromptRequest(LABELS, learned=LearnedPrompts(vectors.reshape(1, 8))),
    ]
    keys = [request.key(encoder.bundle) for request in requests]
    assert len(set(keys)) == len(keys)


def test_key_depends_on_the_text_graph(tiny: Any, tiny_copy: Path, encoder: DualEncoder) -> None:
    request = PromptRequest(LABELS, ("a {}",))
    before = request.key(encoder.bundle)
    assert request.key(Bundle.open(tiny_copy)) == before
    graph = tiny_copy / "text_encoder.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    tiny.reseal(tiny_copy)
    assert request.key(Bundle.open(tiny_copy)) != before


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None, "shape", "length"])
def test_a_damaged_bank_is_made_again(damage: Any, encoder: DualEncoder, tmp_path: Path) -> None:
    request = PromptRequest(LABELS, ("a {}",))
    expected = open_bank(encoder, request, tmp_path).vectors
    (path,) = tmp_path.iterdir()
    if damage is None:
        path.write_bytes(path.read_bytes()[:-30])
    elif isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        np.savez(path, vectors=expected[:2] if damage == "shape" else expected * 2)
    found = open_bank(encoder, request, tmp_path)
    assert not found.cached
    assert np.array_equal(found.vectors, expected)
    assert open_bank(encoder, request, tmp_path).cached


def test_a_cache_that_cannot_be_written_warns(encoder: DualEncoder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(PromptBankWarning, match="cannot be kept"):
        bank = open_bank(encoder, PromptRequest(LABELS, ("a {}",)), tmp_path / "file")
    assert len(bank.vectors) == 3


def test_bank_without_cache_leaves_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path))
    Classifier(bundle).bank(LABELS, cache=False)
    assert os.listdir(tmp_path) == []
    Classifier(bundle).bank(LABELS)
    assert os.listdir(tmp_path) == ["prompts"]


def test_learned_prompts_need_a_graph_that_takes_them(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="takes no learned prompts"):
        Classifier(bundle).bank(LABELS, prompts=LearnedPrompts(np.ones((2, 4), np.float32)), cache=False)


def test_embedder(bundle: Bundle, encoder: DualEncoder, photograph: Callable[..., Image.Image]) -> None:
    pictures = [photograph(20 + i, 30, seed=i) for i in range(11)]
    sentences = [f"a {'dog ' * (i % 5)}cat" for i in range(40)]
    found = Embedder(bundle)(pictures, sentences)
    assert found.images.shape == (11, 8)
    assert found.texts.shape == (40, 8)
    np.testing.assert_allclose(np.linalg.norm(found.images, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(found.images[9], encoder.images([pictures[9]])[0], atol=1e-5)
    np.testing.assert_allclose(found.texts[33], encoder.texts([sentences[33]])[0], atol=1e-5)
    np.testing.assert_allclose(found.similarity[2, 11 + 5], found.images[2] @ found.texts[5], atol=1e-6)
    np.testing.assert_allclose(found.logits, found.images @ found.texts.T * encoder.spec.scale, atol=1e-4)


def test_embedder_takes_single_inputs_of_either_kind(bundle: Bundle, photograph: Callable[..., Image.Image]) -> None:
    embedder = Embedder(bundle)
    assert embedder(photograph()).images.shape == (1, 8)
    assert embedder(texts="a dog").texts.shape == (1, 8)
    assert embedder(np.zeros((9, 9, 3), np.uint8), "a dog").logits.shape == (1, 1)
    with pytest.raises(UsageError, match="nothing to embed"):
        embedder()
    with pytest.raises(UsageError, match="empty text"):
        embedder(texts=" ")
