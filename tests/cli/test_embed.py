"""`vlrt run embed` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlrt.cli import main


def run(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_table_of_cosines(tiny_bundle_folder: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = (photographs / "a.jpg", "a dog", photographs / "b.png", "the cat?")
    assert run("run", "embed", *inputs, "--model", tiny_bundle_folder) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[-1] for line in lines]
    assert names == [str(photographs / "a.jpg"), str(photographs / "b.png"), "a dog", "the cat?"]
    table = [[float(v) for v in line.removesuffix(name).split()] for line, name in zip(lines, names)]
    assert [len(row) for row in table] == [1, 2, 3, 4]
    assert [row[-1] for row in table] == [1.0] * 4


def test_json_lines_with_failures(
    tiny_bundle_folder: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    inputs = (photographs, "missing.jpg", "a dog")
    code = run("run", "embed", *inputs, "--text", "a.jpg", "--json", "--out", out, "--model", tiny_bundle_folder)
    printed = capsys.readouterr().out
    values = [json.loads(line) for line in printed.splitlines()]
    assert code == 1
    assert out.read_text("utf-8") == printed
    assert [value for value in values if "error" in value] == [
        {"image": "missing.jpg", "error": "`missing.jpg` does not exist"}
    ]
    found = [value for value in values if "vector" in value]
    assert [value.get("text") for value in found] == [None, None, None, "a dog", "a.jpg"]
    vectors = np.array([value["vector"] for value in found])
    np.testing.assert_allclose(vectors @ vectors.T, [value["similarity"] for value in found], atol=1e-5)


def test_npz(tiny_bundle_folder: Path, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npz"
    assert run("run", "embed", photographs, "a dog", "--out", out, "--model", tiny_bundle_folder) == 0
    with np.load(out) as stored:
        assert stored["images"].shape == (3, 8)
        assert stored["texts"].shape == (1, 8)
        assert [Path(name).name for name in stored["image_names"]] == ["a.jpg", "b.png", "c.webp"]
        assert stored["text_names"].tolist() == ["a dog"]
        assert stored["scale"] == 10
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["vectors.npz"]


def test_large_tables_are_left_out(
    tiny_bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = [f"dog {'cat ' * (i % 9)}{i}" for i in range(45)]
    assert run("run", "embed", *sentences, "--model", tiny_bundle_folder) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == sentences
    assert "left out" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "nothing to embed"), (["nothing/*.jpg"], "holds no photograph"), ([" "], "empty text")],
)
def test_mistakes(
    arguments: list[str], message: str, tiny_bundle_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", "embed", *arguments, "--model", tiny_bundle_folder) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")


def test_unwritable_output(
    tiny_bundle_folder: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x.npz", "x.jsonl"):
        out = tmp_path / "no" / "such" / name
        assert run("run", "embed", photographs / "a.jpg", "--out", out, "--model", tiny_bundle_folder) == 1
        assert "cannot be written" in capsys.readouterr().err
