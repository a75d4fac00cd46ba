"""`vlrt run classify` and `vlrt export clip-prompts` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vlrt.cli import main


def run(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_one_photograph(tiny_bundle_folder: Path, photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run("run", "classify", photographs / "a.jpg", "--labels", "dog, cat, red car", "--model", tiny_bundle_folder)
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert sorted(line[8:] for line in lines) == ["cat", "dog", "red car"]
    shares = [float(line[:6].rstrip("% ")) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_folder_with_a_missing_file_as_json(
    tiny_bundle_folder: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("dog\ncat\nchild\n", "utf-8")
    (photographs / "broken.png").write_bytes(b"\x89PNG\r\n")
    options = ["--labels-file", tmp_path / "labels.txt", "--top", 2, "--template", "a {}", "--template", "the {}"]
    out = tmp_path / "out.jsonl"
    code = run(
        "run",
        "classify",
        photographs,
        photographs / "gone.jpg",
        *options,
        "--json",
        "--model",
        tiny_bundle_folder,
        "--out",
        out,
    )
    printed = capsys.readouterr().out
    values = [json.loads(line) for line in printed.splitlines()]
    assert code == 1
    assert printed == out.read_text("utf-8")
    assert [Path(value["image"]).name for value in values] == ["a.jpg", "b.png", "broken.png", "c.webp", "gone.jpg"]
    assert ["error" in value for value in values] == [False, False, True, False, True]
    first = values[0]
    assert len(first["labels"]) == 2
    assert first["label"] == first["labels"][0]["label"]
    assert set(first["labels"][0]) == {"label", "probability", "score"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "there are no labels"),
        (["--labels", "dog"], "at least two labels, got `dog` alone"),
        (["--labels", ""], "at least two labels, got none"),
        (["--labels", "dog,dog"], "given twice"),
        (["--labels", "dog,cat", "--labels-file", "x"], "exclude each other"),
        (["--labels", "dog,cat", "--template", "photo"], "0 places"),
        (["--labels", "dog,cat", "--top", "0"], "`--top` is 0"),
        (["--labels", "dog,cat", "--prompts", "missing.npz"], "does not exist"),
        (["--labels-file", "missing.txt"], "does not exist"),
    ],
)
def test_mistakes_are_one_line_with_a_hint(
    options: list[str],
    message: str,
    tiny_bundle_folder: Path,
    photographs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("run", "classify", photographs / "a.jpg", "--model", tiny_bundle_folder, *options) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    error, hint = captured.err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")


def test_clip_prompts_are_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompt_learner").mkdir()
    torch.save({"state_dict": {"ctx": torch.ones(4, 6).half()}}, tmp_path / "prompt_learner" / "model.pth.tar-50")
    source, target = tmp_path / "prompt_learner", tmp_path / "ctx.npz"
    assert run("export", "clip-prompts", "--source", source, "-o", target, "--position", "middle") == 0
    assert "[4, 6]" in capsys.readouterr().out
    with np.load(target) as stored:
        assert stored["context"].dtype == np.float32
        assert str(stored["position"]) == "middle"
    assert run("export", "clip-prompts", "--source", source, "-o", target) == 1
    assert "already exists" in capsys.readouterr().err
    assert run("export", "clip-prompts", "--source", source) == 2
    torch.save({"state_dict": {"ctx": torch.ones(4, 6), "meta_net.weight": torch.ones(1)}}, tmp_path / "cocoop.pth")
    assert run("export", "clip-prompts", "--source", tmp_path / "cocoop.pth", "-o", tmp_path / "x.npz") == 1
    assert "depend on the photograph" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cocoop.pth", "ctx.npz", "prompt_learner"]
