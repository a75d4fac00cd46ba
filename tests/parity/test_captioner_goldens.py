"""The real weights against the numbers that came with them, in torch and through an exported bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, generate
from vlrt.engines import Sessions
from vlrt.tasks.caption import Captioner as CaptionTask
from vlrt.text import TextCodec
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.captioner import Captioner
from vlrt_export.captioner_checks import reference_captions, reference_pixels
from vlrt_export.captioner_layout import load_show_and_tell, load_show_attend_tell, open_captioner_folder
from vlrt_export.families import show_and_tell, show_attend_tell
from vlrt_export.reference_search import SearchOptions
from vlrt_export.request import Request

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def goldens(shared_dir: Path) -> list[dict[str, Any]]:
    return json.loads((shared_dir / "captioner" / "golden.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def captioners(shared_dir: Path) -> dict[str, Captioner]:
    folder = open_captioner_folder(shared_dir / "captioner")
    return {"show_attend_tell": load_show_attend_tell(folder), "show_and_tell": load_show_and_tell(folder)}


@pytest.fixture(scope="module")
def photographs(shared_dir: Path, goldens: list[dict[str, Any]]) -> list[Path]:
    return [shared_dir / "flickr8k-dev" / "images" / golden["image"] for golden in goldens]


@pytest.fixture(scope="module")
def pixels(captioners: dict[str, Captioner], photographs: list[Path]) -> Tensor:
    captioner = captioners["show_attend_tell"]
    loaded = [reference_pixels(pictures.load(path), captioner) for path in photographs]
    return torch.from_numpy(np.stack(loaded))


@pytest.fixture(scope="module")
def regions(captioners: dict[str, Captioner], pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return captioners["show_attend_tell"].encoder(pixels)


def test_pixels(goldens: list[dict[str, Any]], pixels: Tensor) -> None:
    for golden, found in zip(goldens, pixels, strict=True):
        assert found.mean().item() == pytest.approx(golden["pixels"]["mean"], abs=1e-5)
        assert found.std(correction=0).item() == pytest.approx(golden["pixels"]["std"], abs=1e-5)
        assert found.flatten()[:4].tolist() == golden["pixels"]["first"]


def test_the_runtimes_pixels_are_the_same(
    captioners: dict[str, Captioner], photographs: list[Path], pixels: Tensor
) -> None:
    spec = captioners["show_attend_tell"].image
    found = pictures.preprocess([pictures.load(path) for path in photographs], spec)
    np.testing.assert_array_equal(found, pixels.numpy())


def test_features(goldens: list[dict[str, Any]], regions: Tensor) -> None:
    for golden, found in zip(goldens, regions, strict=True):
        assert list(found.shape) == golden["features"]["shape"]
        assert found.mean().item() == pytest.approx(golden["features"]["mean"], abs=TOLERANCE)
        assert found.std().item() == pytest.approx(golden["features"]["std"], abs=TOLERANCE)
        assert found[40, :6].tolist() == pytest.approx(golden["features"]["row40"], abs=TOLERANCE)


@pytest.mark.parametrize("model", ["show_attend_tell", "show_and_tell"])
@pytest.mark.parametrize("beams", [1, 3, 20])
def test_captions_of_the_torch_modules(
    captioners: dict[str, Captioner], goldens: list[dict[str, Any]], regions: Tensor, model: str, beams: int
) -> None:
    captioner = captioners[model]
    options = SearchOptions(beams, 25, 0.7, captioner.words.start_id, captioner.words.end_id)
    vocabulary = _vocabulary(captioner)
    for golden, found in zip(goldens, reference_captions(captioner, regions, options), strict=True):
        for expected, hypothesis in zip(golden[f"{model}_beam{beams}"], found, strict=False):
            words = [vocabulary[i] for i in hypothesis.tokens if i != captioner.words.end_id]
            assert " ".join(words) == expected["text"]
            assert hypothesis.score == pytest.approx(expected["score"], abs=TOLERANCE)


def _vocabulary(captioner: Captioner) -> list[str]:
    words = json.loads(captioner.words.tokenizer)["model"]["vocab"]
    return sorted(words, key=words.get)


def test_embeddings_and_cosines_of_the_torch_modules(
    captioners: dict[str, Captioner], goldens: list[dict[str, Any]], regions: Tensor
) -> None:
    model = captioners["show_attend_tell"].dual_encoder
    assert model is not None
    vocabulary = {word: i for i, word in enumerate(_vocabulary(captioners["show_attend_tell"]))}
    with torch.no_grad():
        images = model.image(regions)
        for golden, image in zip(goldens, images, strict=True):
            expected = golden["dual_encoder"]
            assert image[:4].tolist() == pytest.approx(expected["image"], abs=TOLERANCE)
            for text, cosine in zip(expected["texts"], expected["cosine"], strict=True):
                ids = [1, *(vocabulary.get(word, 3) for word in text.split()), 2]
                found = model.text(torch.tensor([ids]))[0] @ image
                assert found.item() == pytest.approx(cosine, abs=TOLERANCE)


@pytest.fixture(scope="module")
def bundles(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both models exported; the rung of captions is left out, since the goldens below say more."""
    folder = tmp_path_factory.mktemp("bundles")
    families = {"show_attend_tell": show_attend_tell, "show_and_tell": show_and_tell}
    found = {}
    for name, family in families.items():
        entry = Entry(name.replace("_", "-"), ("caption",), "")
        request = Request(name, entry, source=str(shared_dir / "captioner"))
        plan = family.build(request)
        pixels = [check for check in plan.checks if check.__name__ == "pixels"]
        write_bundle(replace(plan, checks=pixels), folder / name)
        found[name] = folder / name
    return found


@pytest.mark.parametrize("model", ["show_attend_tell", "show_and_tell"])
def test_captions_of_the_bundle(
    bundles: dict[str, Path], goldens: list[dict[str, Any]], photographs: list[Path], model: str
) -> None:
    task = CaptionTask(Bundle.open(bundles[model]))
    batch = pictures.preprocess([pictures.load(path) for path in photographs], task.image_spec)
    initial = task.sessions.run_chain(task.spec.chain, {task.image_spec.input: batch})
    for beams in (1, 3, 20):
        options = DecodeOptions(
            num_beams=beams,
            num_return_sequences=min(beams, 3),
            length_penalty=0.7,
            early_stopping=True,
            max_new_tokens=25,
        )
        found = generate(task.step_model, initial, options)
        for golden, hypotheses in zip(goldens, found, strict=True):
            for expected, hypothesis in zip(golden[f"{model}_beam{beams}"], hypotheses, strict=True):
                tokens = [int(i) for i in hypothesis.tokens if i not in task.spec.end_ids]
                assert task.codec.decode(tokens) == expected["text"]
                assert hypothesis.score == pytest.approx(expected["score"], abs=TOLERANCE)


def test_cosines_of_the_bundle(
    bundles: dict[str, Path], goldens: list[dict[str, Any]], photographs: list[Path]
) -> None:
    bundle = Bundle.open(bundles["show_attend_tell"])
    sessions, codec, spec = Sessions(bundle), TextCodec.open(bundle), bundle.manifest
    assert spec.embed is not None
    assert spec.image is not None
    batch = pictures.preprocess([pictures.load(path) for path in photographs], spec.image)
    images = sessions.run_chain(spec.embed.image, {"pixels": batch})["image_embedding"]
    for golden, image in zip(goldens, images, strict=True):
        ids = codec.encode(golden["dual_encoder"]["texts"])
        texts = sessions.run_chain(spec.embed.text, {"input_ids": ids})["text_embedding"]
        assert (texts @ image).tolist() == pytest.approx(golden["dual_encoder"]["cosine"], abs=TOLERANCE)


def test_the_default_bundle_is_small_enough_to_ship(bundles: dict[str, Path]) -> None:
    size = sum(path.stat().st_size for path in bundles["show_attend_tell"].iterdir())
    assert size <= 32_000_000
