"""The bundle that comes with the package: small enough, as exported, admitted by its captions, and ready to use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vlrt
from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.verify import verify

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return zoo.resolve(None, "caption")


def test_it_is_whole_and_small(shipped: Bundle) -> None:
    assert shipped.name == "flickr8k-captioner"
    assert shipped.size + (shipped.path / "manifest.json").stat().st_size <= 32_000_000
    assert not list(shipped.problems())
    assert all(line.passed for line in verify(shipped))


def test_it_was_admitted_by_its_captions(shipped: Bundle) -> None:
    lines = {line.metric: line for line in shipped.manifest.certificate if line.stage == "captions"}
    # The card of the weights says 21.3 and 0.526 at beam 3.
    assert lines["BLEU-4"].value == pytest.approx(21.3, abs=0.3)
    assert lines["CIDEr-D"].value == pytest.approx(0.526, abs=0.01)
    assert all(line.passed for line in shipped.manifest.certificate)


def test_every_default_task_is_served_by_a_bundle_that_is_here() -> None:
    for task in zoo.zoo().defaults:
        assert zoo.resolve(None, task).manifest.tasks


def test_it_captions_and_says_where_it_looked() -> None:
    captioner = vlrt.load("caption", threads=1)
    found = captioner(PHOTOS / "raccoon.jpg")
    assert found.text == "a black and white dog is standing in the grass"
    assert found.attention.shape == (len(found.words), 9, 9)
    np.testing.assert_allclose(found.attention.sum((1, 2)), 1, atol=1e-4)
    assert captioner(PHOTOS / "astronaut.jpg").text.startswith("a man")


def test_it_matches_sentences() -> None:
    matcher = vlrt.load("match", threads=1)
    dog, man = matcher(PHOTOS / "raccoon.jpg", ["a dog on the grass", "a man in a red suit"])
    assert dog.score > man.score
    assert dog.probability + man.probability == pytest.approx(1)
