"""Captioning in Python: every kind of image, what a caption holds, options, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vlrt
from vlrt.bundle import Bundle
from vlrt.errors import BundleError, ImageError, UsageError, VlrtError
from vlrt.tasks.caption import Captioner

Make = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def captioner(tiny_bundle_folder: Path) -> Captioner:
    return Captioner(Bundle.open(tiny_bundle_folder))


def test_all_kinds_of_images_give_one_caption(captioner: Captioner, photograph: Make, tmp_path: Path) -> None:
    picture = photograph(seed=4)
    path = tmp_path / "a.png"
    picture.save(path)
    sources = [path, str(path), path.read_bytes(), picture, np.asarray(picture), np.asarray(picture) / 255.0]
    assert len({captioner(source).tokens for source in sources}) == 1


def test_what_a_caption_holds(captioner: Captioner, photograph: Make) -> None:
    found = captioner(photograph(), num_beams=4, num_return_sequences=3)
    assert found.text == " ".join(found.words)
    assert found.tokens[-1] == 2, "the end id"
    assert len(found.words) == len(found.tokens) - 1
    assert found.attention is not None
    assert found.attention.shape == (len(found.words), 4, 4)
    assert found.attention.dtype == np.float32
    assert np.allclose(found.attention.sum(axis=(1, 2)), 1, atol=1e-5)
    assert len(found.alternatives) == 2
    scores = [found.score, *(other.score for other in found.alternatives)]
    assert scores == sorted(scores, reverse=True)
    assert all(other.alternatives == () for other in found.alternatives)
    assert set(found.timings) == {"read", "encode", "decode"}
    assert all(seconds >= 0 for seconds in found.timings.values())


def test_a_caption_that_did_not_end(captioner: Captioner, photograph: Make) -> None:
    found = captioner(photograph(), num_beams=1, max_new_tokens=3)
    assert len(found.tokens) == len(found.words) == 3
    assert 2 not in found.tokens


def test_options_replace_the_bundles_defaults(captioner: Captioner, photograph: Make) -> None:
    plain = captioner.options()
    assert (plain.num_beams, plain.max_new_tokens, plain.suppress_tokens) == (3, 9, (0, 1, 3))
    assert captioner.options(num_beams=7, max_new_tokens=None) == replace(plain, num_beams=7)
    found = captioner(photograph(), suppress_tokens=[*range(2), *range(3, 14)])
    assert set(found.tokens) <= {2, 14}


@pytest.mark.parametrize("options", [{"num_beams": 0}, {"beams": 3}, {"num_return_sequences": 9}, {"rule": "x"}])
def test_options_that_cannot_be_meant(captioner: Captioner, photograph: Make, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        captioner(photograph(), **options)


def test_a_batch_is_its_photographs_one_by_one(captioner: Captioner, photograph: Make) -> None:
    pictures = [photograph(20 + 5 * seed, 30, seed=seed) for seed in range(7)]
    together = captioner.batch(pictures)
    for found, picture in zip(together, pictures):
        alone = captioner(picture)
        assert found.tokens == alone.tokens
        assert found.score == pytest.approx(alone.score, abs=1e-5)
        assert found.attention is not None
        assert alone.attention is not None
        assert np.allclose(found.attention, alone.attention, atol=1e-5)
    assert captioner.batch([]) == []


def test_one_bad_image_fails_the_batch_by_name(captioner: Captioner, photograph: Make, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg` does not exist"):
        captioner.batch([photograph(), tmp_path / "gone.jpg"])


@pytest.mark.parametrize("beams", [1, 3])
def test_tokens_are_told_as_they_become_final(captioner: Captioner, photograph: Make, beams: int) -> None:
    told: dict[int, list[int]] = {0: [], 1: []}
    pictures = [photograph(seed=1), photograph(seed=2)]
    found = captioner.batch(pictures, on_token=lambda image, token: told[image].append(token), num_beams=beams)
    assert [tuple(told[image]) for image in (0, 1)] == [caption.tokens for caption in found]


def test_a_run_can_be_cancelled(captioner: Captioner, photograph: Make) -> None:
    asked: list[int] = []

    def after_two() -> bool:
        asked.append(1)
        return len(asked) > 2

    (found,) = captioner.batch([photograph()], should_cancel=after_two, num_beams=1, min_new_tokens=9)
    assert len(found.tokens) == 2
    assert captioner(photograph(), num_beams=1, min_new_tokens=9).tokens[:2] == found.tokens


def test_what_a_callback_raises_comes_through_and_breaks_nothing(captioner: Captioner, photograph: Make) -> None:
    class Stop(Exception):  # noqa: N818 - not an error
        pass

    def stop(image: int, token: int) -> None:
        raise Stop

    expected = captioner(photograph()).tokens
    with pytest.raises(Stop):
        captioner.batch([photograph()], on_token=stop)
    assert captioner(photograph()).tokens == expected


def test_threads_may_share_a_captioner(captioner: Captioner, photograph: Make) -> None:
    pictures = [photograph(seed=seed) for seed in range(4)]
    expected = [captioner(picture).tokens for picture in pictures]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for beams in (3, 1, 5, 3) * 5:
            if beams == 3 and captioner(pictures[seed]).tokens != expected[seed]:
                wrong.append(seed)
            captioner(pictures[seed], num_beams=beams)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_forbidding_every_word_is_an_error(captioner: Captioner, photograph: Make) -> None:
    with pytest.raises(VlrtError) as caught:
        captioner(photograph(), suppress_tokens=list(range(15)))
    assert "\n" not in caught.value.what
    assert captioner(photograph()).text


def test_the_first_line_of_the_readme(tiny_bundle_folder: Path, photograph: Make, tmp_path: Path) -> None:
    photograph().save(tmp_path / "photo.jpg")
    assert vlrt.load("caption", tiny_bundle_folder)(str(tmp_path / "photo.jpg")).text


def test_bundles_that_cannot_caption(tiny_bundle_folder: Path) -> None:
    bundle = Bundle.open(tiny_bundle_folder)
    for change, message in (
        ({"tasks": ("match",)}, "does not serve `caption`"),
        ({"decode": None}, "has no decode or image section"),
        ({"image": None, "decode": None, "embed": None}, "has no decode or image section"),
    ):
        with pytest.raises(BundleError, match=message):
            Captioner(Bundle(bundle.path, replace(bundle.manifest, **change)))
