"""`vlrt run match` and `vlrt run search`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]


@pytest.fixture
def match(command: Run, tiny_bundle_folder: Path) -> Run:
    return lambda *arguments: command("run", "match", *arguments, "--model", tiny_bundle_folder)


@pytest.fixture
def search(command: Run, tiny_bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: command("run", "search", *arguments, "--model", tiny_bundle_folder)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_one_sentence(match: Run, photographs: Path) -> None:
    found = match(photographs / "a.jpg", "a dog")
    assert found.code == 0
    score, text = found.out.split(maxsplit=1)
    assert -1 <= float(score) <= 1
    assert text == "a dog\n"


def test_several_sentences_best_first_with_shares(match: Run, photographs: Path) -> None:
    texts = ["a dog", "the cat runs", "a red car", "child on a car"]
    printed = [line.split(maxsplit=2) for line in match(photographs / "a.jpg", *texts).out.splitlines()]
    scores = [float(score) for score, _, _ in printed]
    assert scores == sorted(scores, reverse=True)
    assert sum(float(share.rstrip("%")) for _, share, _ in printed) == pytest.approx(100, abs=0.3)
    assert sorted(text for _, _, text in printed) == sorted(texts)
    (value,) = lines(match(photographs / "a.jpg", *texts, "--json").out)
    assert [m["text"] for m in value["matches"]] == texts
    assert sum(m["probability"] for m in value["matches"]) == pytest.approx(1, abs=1e-4)


def test_match_keeps_its_answer_in_a_file(match: Run, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    assert match(photographs / "a.jpg", "a dog", "--out", out).code == 0
    assert match(photographs / "b.png", "a cat", "--out", out).out == ""
    (value,) = lines(out.read_text("utf-8"))
    assert value["image"] == str(photographs / "b.png")


def test_match_failures(match: Run, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    match(photographs / "gone.jpg", "a dog").failed(1, "does not exist")
    assert "error" in lines(match(photographs / "gone.jpg", "a dog", "--json").out)[0]
    match(photographs / "a.jpg", "a dog", " ", "--out", out).failed(2, "an empty text has no meaning")
    match(photographs / "a.jpg", "a \udcff dog", "--out", out).failed(2, "not a text the tokenizer reads")
    match(photographs / "a.jpg").failed(2, "missing argument 'TEXTS...'")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"], "nothing half-written"


def test_a_sentence_that_is_cut_is_told_in_one_line(match: Run, photographs: Path) -> None:
    """Not as Python shows warnings, with a file and a line of source."""
    found = match(photographs / "a.jpg", "dog " * 30, "cat " * 30)
    assert found.code == 0
    assert len(found.err.splitlines()) == 2
    for line in found.err.splitlines():
        assert line.startswith("warning: `")
        assert "has 30 tokens, the model reads 14; the rest was cut: `" in line


def test_search_orders_the_folder(search: Run, photographs: Path) -> None:
    found = search("a dog", photographs)
    assert found.code == 0
    printed = [line.split(maxsplit=1) for line in found.out.splitlines()]
    scores = [float(score) for score, _ in printed]
    assert scores == sorted(scores, reverse=True)
    assert {Path(path).name for _, path in printed} == {"a.jpg", "b.png", "c.webp"}
    values = lines(search("a dog", photographs, "--json", "--top", 2).out)
    assert [v["image"] for v in values] == [path for _, path in printed[:2]]
    assert list(values[0]) == ["image", "text", "score"]


def test_search_and_match_give_the_same_score(search: Run, match: Run, photographs: Path) -> None:
    for value in lines(search("the cat", photographs, "--json").out):
        (matched,) = lines(match(value["image"], "the cat", "--json").out)
        assert matched["matches"][0]["score"] == pytest.approx(value["score"], abs=1e-5)


def test_search_draws_a_grid(search: Run, photographs: Path, tmp_path: Path) -> None:
    found = search("a dog", photographs, "--grid", tmp_path / "grid.png")
    assert found.err == f"grid drawn to {tmp_path / 'grid.png'}\n"
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[0] > 3 * 224


def test_search_keeps_its_index_where_told(search: Run, photographs: Path, tmp_path: Path) -> None:
    search("a dog", photographs)
    assert len(list((tmp_path / "cache" / "search").iterdir())) == 1
    search("a dog", photographs, "--index", tmp_path / "i.npz")
    before = (tmp_path / "i.npz").read_bytes()
    search("a cat", photographs, "--index", tmp_path / "i.npz")
    assert (tmp_path / "i.npz").read_bytes() == before


def test_search_goes_on_past_bad_photographs(search: Run, photographs: Path, tmp_path: Path) -> None:
    (photographs / "b.png").write_bytes(b"broken")
    gone = photographs / "gone.jpg"
    found = search("a dog", photographs, gone, "--json", "--grid", tmp_path / "grid.png")
    assert found.code == 1
    assert {Path(v["image"]).name for v in lines(found.out) if "error" in v} == {"b.png", "gone.jpg"}
    assert len(lines(found.out)) == 4
    assert (tmp_path / "grid.png").exists()


def test_search_failures(search: Run, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    search(" ", photographs).failed(2, "an empty text describes no photograph")
    search("a dog", photographs, "--top", 0).failed(2, "invalid value for '--top'")
    search("a dog", photographs, "--grid", tmp_path / "grid").failed(2, "has no ending of a picture")
    search("a dog", tmp_path / "none.jpg").failed(1, "does not exist")
    search("a dog", photographs, "--index", tmp_path / "notes").failed(1, "cannot be read as an index")
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_cache_that_cannot_be_written(
    search: Run, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path / "file"))
    search("a dog", photographs).failed(1, "cannot be", "Not a directory")
