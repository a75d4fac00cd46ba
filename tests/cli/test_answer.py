"""`vlrt run answer`, and captions with a given beginning, on a bundle whose questions are prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlrt.tasks import load

Run = Callable[..., Any]


@pytest.fixture
def folder(tiny_copy: Path, tiny: ModuleType) -> Path:
    """The tiny captioner, told that it answers: it goes on where the question ends."""
    value = json.loads((tiny_copy / "manifest.json").read_text("utf-8"))
    value["tasks"] = ["caption", "answer"]
    value["answer"] = {"question": "prompt", "template": "the {} on"}
    (tiny_copy / "manifest.json").write_text(json.dumps(value), "utf-8")
    return tiny_copy


@pytest.fixture
def answer(command: Run, folder: Path) -> Run:
    return lambda *arguments: command("run", "answer", *arguments, "--model", folder)


@pytest.fixture
def caption(command: Run, folder: Path) -> Run:
    return lambda *arguments: command("run", "caption", *arguments, "--model", folder)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_answer(answer: Run, folder: Path, photographs: Path) -> None:
    expected = load("answer", folder)(photographs / "a.jpg", "dog")
    assert expected.text
    found = answer(photographs / "a.jpg", "dog")
    assert (found.code, found.out, found.err) == (0, expected.text + "\n", "")


def test_the_question_decides(answer: Run, photographs: Path) -> None:
    """As it stands in the template: a caption that begins so goes on in the same way."""
    given = {answer(photographs / "a.jpg", question, "--beams", 1).out for question in ("dog", "car runs red", "cat")}
    assert len(given) > 1


def test_an_answer_is_how_a_caption_goes_on(answer: Run, caption: Run, photographs: Path) -> None:
    said = answer(photographs / "a.jpg", "dog", "--beams", 1).out.strip()
    assert caption(photographs / "a.jpg", "--prompt", "the dog on", "--beams", 1).out.strip() == f"the dog on {said}"


def test_several_photographs_as_json(answer: Run, photographs: Path) -> None:
    found = lines(answer(photographs, "dog", "--json", "--n-best", 2).out)
    assert [Path(line["image"]).name for line in found] == ["a.jpg", "b.png", "c.webp"]
    for line in found:
        assert line["question"] == "dog"
        assert len(line["answers"]) == 2
        assert line["text"] == line["answers"][0]["text"]


def test_given_answers_are_ranked(answer: Run, folder: Path, photographs: Path) -> None:
    found = lines(answer(photographs / "a.jpg", "dog", "--answers", "red car, child, a cat", "--json").out)[0]
    scores = [line["score"] for line in found["answers"]]
    assert {line["text"] for line in found["answers"]} == {"red car", "child", "a cat"}
    assert scores == sorted(scores, reverse=True)
    shown = answer(photographs / "a.jpg", "dog", "--answers", "red car, child, a cat").out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in shown] == [line["text"] for line in found["answers"]]


def test_a_broken_photograph_among_others(answer: Run, photographs: Path) -> None:
    (photographs / "b.png").write_bytes(b"nothing")
    found = answer(photographs, "dog", "--json")
    assert found.code == 1
    results = lines(found.out)
    assert [("error" in line) for line in results] == [False, True, False]


def test_what_cannot_be_meant(answer: Run, caption: Run, photographs: Path) -> None:
    photo = photographs / "a.jpg"
    answer(photo, " ").failed(2, "an empty question has no answer")
    answer(photo, "dog", "--answers", " , ").failed(2, "an empty answer cannot be ranked")
    answer(photo, "dog", "--answers", "a, the", "--beams", 3).failed(2, "`num_beams` is of the search")
    answer(photo, "dog " * 70).failed(2, "a prompt has 73 tokens with its start, this decoder has room for 64")
    caption(photo, "--prompt", "dog " * 70).failed(2, "a prompt has 71 tokens with its start")
    answer(photo).failed(2, "missing argument 'IMAGES...'")  # two are needed, and the last is the question


def test_a_bundle_that_does_not_answer(command: Run, tiny_bundle_folder: Path, photographs: Path) -> None:
    found = command("run", "answer", photographs / "a.jpg", "dog", "--model", tiny_bundle_folder)
    found.failed(1, "does not serve `answer`, it serves `caption`")


def test_without_a_model(command: Run, photographs: Path) -> None:
    command("run", "answer", photographs / "a.jpg", "dog").failed(1, "no default model serves `answer`", "--model")
