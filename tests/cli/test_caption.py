"""`vlrt run caption`: one photograph, many, folders, patterns; JSON lines that a later run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlrt.commands import output
from vlrt.engines.onnxruntime import load_library
from vlrt.tasks import load

Run = Callable[..., Any]


@pytest.fixture
def caption(command: Run, tiny_bundle_folder: Path) -> Run:
    return lambda *arguments: command("run", "caption", *arguments, "--model", tiny_bundle_folder)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- what is printed


def test_one_photograph_gives_its_caption(caption: Run, photographs: Path, tiny_bundle_folder: Path) -> None:
    found = caption(photographs / "a.jpg")
    expected = load("caption", tiny_bundle_folder)(photographs / "a.jpg")
    assert expected.text
    assert (found.code, found.out, found.err) == (0, expected.text + "\n", "")


def test_several_are_told_apart(caption: Run, photographs: Path) -> None:
    found = caption(photographs / "b.png", photographs / "a.jpg", photographs / "b.png")
    names = [line.partition(": ")[0] for line in found.out.splitlines()]
    assert names == [str(photographs / "b.png"), str(photographs / "a.jpg")]


def test_a_folder_gives_its_photographs_and_those_below_in_order(caption: Run, photographs: Path) -> None:
    found = lines(caption(photographs, "--json").out)
    assert [line["image"] for line in found] == [str(photographs / n) for n in ("a.jpg", "b.png", "more/c.webp")]


def test_patterns(caption: Run, photographs: Path) -> None:
    for pattern, names in (("*.jpg", ["a.jpg"]), ("[ab].*", ["a.jpg", "b.png"]), ("**/*.webp", ["more/c.webp"])):
        found = lines(caption(photographs / pattern, "--json").out)
        assert [line["image"] for line in found] == [str(photographs / name) for name in names]


def test_a_file_whose_name_looks_like_a_pattern(caption: Run, photographs: Path) -> None:
    (photographs / "a.jpg").rename(photographs / "[1]*.jpg")
    assert lines(caption(photographs / "[1]*.jpg", "--json").out)[0]["image"].endswith("[1]*.jpg")


@pytest.mark.parametrize(
    "name", ["a b.jpg", "größe.jpg", "a\nb.jpg", "a\u2028b.jpg", os.fsdecode(b"caf\xe9.jpg"), "\x1b]0;x\x07.jpg"]
)
def test_any_name_of_a_file(caption: Run, photographs: Path, tmp_path: Path, name: str) -> None:
    path = photographs / "more" / name
    (photographs / "a.jpg").rename(path)
    out = tmp_path / "o.jsonl"
    found = caption(path, "--json", "--out", out)
    assert found.code == 0
    written = out.read_text("utf-8")
    assert found.out == written
    assert written.count("\n") == 1
    assert json.loads(written)["image"] == str(path)
    assert caption(path, "--out", out).code == 0
    assert out.read_text("utf-8") == written, "a second run finds it done"
    found = caption(path.with_name("gone" + name))
    found.failed(1, "does not exist")


def test_json_is_one_object_per_input(caption: Run, photographs: Path) -> None:
    (value,) = lines(caption(photographs / "a.jpg", "--json").out)
    assert list(value) == ["image", "text", "score"]
    assert isinstance(value["score"], float)


def test_n_best_with_scores(caption: Run, photographs: Path) -> None:
    (value,) = lines(caption(photographs / "a.jpg", "--json", "--beams", 5, "--n-best", 3).out)
    scores = [c["score"] for c in value["captions"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert value["captions"][0] == {"text": value["text"], "score": value["score"]}
    printed = caption(photographs / "a.jpg", "--beams", 5, "--n-best", 3).out.splitlines()
    assert [float(line.split()[0]) for line in printed] == pytest.approx(scores, abs=1e-4)


def test_sampling_depends_on_the_seed_alone(caption: Run, photographs: Path) -> None:
    def sample(seed: int) -> str:
        options = ("--sample", "--temperature", 3.0, "--top-k", 10, "--seed", seed)
        return str(caption(photographs / "a.jpg", *options).out)

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(6)}) > 1


def test_the_batch_does_not_change_the_captions(caption: Run, photographs: Path) -> None:
    found = [lines(caption(photographs, "--json", "--batch-size", size).out) for size in (1, 2, 8)]
    texts = [[line["text"] for line in batch] for batch in found]
    assert texts[0] == texts[1] == texts[2]


# --- attention


def test_attention_is_drawn(caption: Run, photographs: Path, tmp_path: Path) -> None:
    found = caption(photographs / "a.jpg", "--attention", tmp_path / "att.png")
    assert found.code == 0
    assert found.err == f"attention drawn to {tmp_path / 'att.png'}\n"
    with Image.open(tmp_path / "att.png") as figure:
        assert figure.size[0] > 224


def test_attention_needs_one_photograph_and_a_place(caption: Run, photographs: Path, tmp_path: Path) -> None:
    target = tmp_path / "att.png"
    caption(photographs, "--attention", target).failed(2, "`--attention` draws one photograph, got 3")
    caption(photographs / "a.jpg", "--attention", tmp_path / "att").failed(2, "has no ending of a picture")
    caption(photographs / "a.jpg", "--attention", tmp_path / "no" / "a.png").failed(2, "does not exist")
    out = tmp_path / "o.jsonl"
    assert caption(photographs / "a.jpg", "--out", out).code == 0
    found = caption(photographs / "a.jpg", "--out", out, "--attention", target)
    assert found.code == 2
    assert "nothing to draw" in found.err
    assert not target.exists()


def test_a_model_that_does_not_attend(command: Run, tiny_copy: Path, photographs: Path, tmp_path: Path) -> None:
    value = json.loads((tiny_copy / "manifest.json").read_text("utf-8"))
    del value["decode"]["records"]
    (tiny_copy / "manifest.json").write_text(json.dumps(value), "utf-8")
    target = tmp_path / "att.png"
    found = command("run", "caption", photographs / "a.jpg", "--model", tiny_copy, "--attention", target)
    assert found.code == 2
    assert "does not attend" in found.err
    assert not target.exists()


# --- bad inputs


def test_one_bad_photograph_does_not_stop_the_others(caption: Run, photographs: Path, tmp_path: Path) -> None:
    (photographs / "b.png").write_bytes(b"not an image")
    gone = photographs / "gone.jpg"
    found = caption(photographs, gone, "--json", "--out", tmp_path / "o.jsonl")
    assert found.code == 1
    values = lines(found.out)
    assert [Path(v["image"]).name for v in values] == ["a.jpg", "b.png", "c.webp", "gone.jpg"]
    assert ["error" in v for v in values] == [False, True, False, True]
    assert "is not an image we can read" in values[1]["error"]
    assert values[3] == {"image": str(gone), "error": f"`{gone}` does not exist"}
    assert lines((tmp_path / "o.jsonl").read_text("utf-8")) == values


def test_for_people_failures_are_lines_on_standard_error(caption: Run, photographs: Path) -> None:
    found = caption(photographs / "a.jpg", photographs / "gone.jpg")
    assert found.code == 1
    assert len(found.out.splitlines()) == 1
    assert found.err == f"error: `{photographs / 'gone.jpg'}` does not exist (hint: check the name)\n"


def test_places_without_photographs(caption: Run, tmp_path: Path, photographs: Path) -> None:
    (tmp_path / "none").mkdir()
    caption(tmp_path / "none").failed(2, "the folder `", "holds no photograph", "endings taken")
    caption(tmp_path / "none" / "*.jpg").failed(2, "the pattern `", "holds no photograph")
    caption(photographs / "notes.txt").failed(1, "is not an image")
    caption("x" * 5000).failed(1, "File name too long")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--beams", 0], "`num_beams` is 0"),
        (["--beams", -3], "`num_beams` is -3"),
        (["--beams", "many"], "invalid value for '--beams'"),
        (["--beams", 2, "--n-best", 3], "`num_return_sequences` is 3"),
        (["--n-best", 0], "`num_return_sequences` is 0"),
        (["--beams", 1, "--n-best", 2], "`num_return_sequences` is 2"),
        (["--sample", "--temperature", 0], "`temperature` is 0"),
        (["--sample", "--temperature", -1], "`temperature` is -1"),
        (["--sample", "--temperature", "nan"], "`temperature` is nan"),
        (["--sample", "--top-p", 1.5], "`top_p` is 1.5"),
        (["--sample", "--top-k", -1], "`top_k` is -1"),
        (["--temperature", 0.5], "tokens are not sampled"),
        (["--seed", -1], "`seed` is -1"),
        (["--max-tokens", 0], "`max_new_tokens` is 0"),
        (["--max-tokens", 1000], "this decoder has room for"),
        (["--length-penalty", "inf"], "`length_penalty` is inf"),
        (["--rule", "best"], "invalid value for '--rule'"),
        (["--rule", "classic", "--sample"], "`rule` is `classic`"),
        (["--batch-size", 0], "invalid value for '--batch-size'"),
        (["--threads", -1], "invalid value for '--threads'"),
        (["--device", "tpu"], "unknown device `tpu`"),
        (["--nonsense"], "no such option"),
    ],
)
def test_options_that_cannot_be_meant(
    caption: Run, photographs: Path, tmp_path: Path, options: list[object], words: str
) -> None:
    found = caption(photographs / "a.jpg", "--out", tmp_path / "o.jsonl", *options)
    found.failed(2, words)
    assert found.out == ""


def test_an_unknown_model_and_one_that_does_not_caption(command: Run, photographs: Path, tiny_copy: Path) -> None:
    command("run", "caption", photographs, "--model", "flickr8k-captionr").failed(
        1, "no model or bundle is called `flickr8k-captionr`", "did you mean `flickr8k-captioner`"
    )
    value = json.loads((tiny_copy / "manifest.json").read_text("utf-8"))
    (tiny_copy / "manifest.json").write_text(json.dumps(value | {"tasks": ["match"]}), "utf-8")
    command("run", "caption", photographs, "--model", tiny_copy).failed(
        1, "the bundle `tiny` does not serve `caption`, it serves `match`", "vlrt models"
    )
    command("run", "caption", photographs, "--model", photographs).failed(1, "is not a bundle: it has no manifest.json")
    command("run", "caption", photographs, "--device", "cuda:0", "--model", tiny_copy.parent / "none").failed(
        1, "is not a folder"
    )


def test_a_device_that_is_not_there(caption: Run, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_library(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    caption(photographs / "a.jpg", "--device", "cuda:0").failed(1, "needs CUDAExecutionProvider", "vlrt[gpu]")


# --- files of results


def test_a_second_run_goes_on_where_the_first_stopped(caption: Run, photographs: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "o.jsonl"
    assert caption(photographs, "--out", whole).code == 0
    expected = whole.read_text("utf-8").splitlines(keepends=True)
    for text in (expected[0], expected[0] + expected[1][:20], expected[0] + '{"im', "", expected[0] + "{"):
        out.write_text(text, "utf-8")
        found = caption(photographs, "--out", out)
        assert found.code == 0
        assert out.read_text("utf-8").splitlines(keepends=True) == expected
        if text:
            assert found.err == f"1 of 3 photographs are already in {out}\n"
    stamp = out.stat().st_mtime_ns
    assert caption(photographs, "--out", out).err == f"3 of 3 photographs are already in {out}\n"
    assert out.stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "photos", "whole.jsonl"]


def test_a_line_cut_within_a_letter(caption: Run, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    out.write_bytes(b'{"image": "gr\xc3')
    assert caption(photographs / "a.jpg", "--out", out).code == 0
    assert len(lines(out.read_text("utf-8"))) == 1


def test_failures_are_tried_again(caption: Run, photographs: Path, tmp_path: Path, photograph: Any) -> None:
    out = tmp_path / "o.jsonl"
    (photographs / "a.jpg").write_bytes(b"broken")
    assert caption(photographs, "--out", out).code == 1
    photograph(seed=1).save(photographs / "a.jpg")
    found = caption(photographs, "--out", out)
    assert found.code == 0
    values = lines(out.read_text("utf-8"))
    assert sorted(Path(v["image"]).name for v in values) == ["a.jpg", "b.png", "c.webp"]
    assert not any("error" in v for v in values)


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"my notes\n",
        b"a\nb\n",
        b"[1]\n",
        b"3\n",
        b'{"text": "no image"}\n',
        b'{"image": 3}\n',
        b'{"image": "a", "text"\n{"image": "b"}\n',
        b"\xff\xd8\xff\xe0 a photograph",
        b"\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_files_that_hold_something_else_are_left_alone(
    caption: Run, photographs: Path, tmp_path: Path, content: bytes
) -> None:
    out = tmp_path / "notes"
    out.write_bytes(content)
    caption(photographs / "a.jpg", "--out", out).failed(1, "is not a file of results", "left as it is")
    assert out.read_bytes() == content


def test_places_that_cannot_be_written(caption: Run, photographs: Path, tmp_path: Path) -> None:
    caption(photographs, "--out", tmp_path).failed(2, "--out", "is a directory")
    caption(photographs, "--out", tmp_path / "no" / "o.jsonl").failed(1, "cannot be written", "No such file")
    caption(photographs, "--out", photographs / "a.jpg" / "o.jsonl").failed(1, "cannot be written", "Not a directory")
    os.mkfifo(tmp_path / "pipe")
    caption(photographs, "--out", tmp_path / "pipe").failed(1, "is not a regular file")


def test_no_permission(caption: Run, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom no permission stops, so the system's answer is given by hand."""

    def forbid(*args: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(output, "open", forbid, raising=False)
    caption(photographs, "--out", tmp_path / "o.jsonl").failed(1, "cannot be written: Permission denied", "--out")


def test_a_disk_that_fills_up(caption: Run, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written stays, and a later run goes on."""
    out = tmp_path / "o.jsonl"
    write = output.ResultLines._write

    def full(self: output.ResultLines, line: str) -> None:
        if "b.png" in line:
            monkeypatch.setattr(self, "_stream", _Full(self._stream))
        write(self, line)

    monkeypatch.setattr(output.ResultLines, "_write", full)
    caption(photographs, "--out", out).failed(1, "cannot be written: No space left on device", "free some space")
    assert [Path(v["image"]).name for v in lines(out.read_text("utf-8"))] == ["a.jpg"]
    monkeypatch.undo()
    assert caption(photographs, "--out", out).code == 0
    assert len(lines(out.read_text("utf-8"))) == 3


class _Full:
    def __init__(self, stream: Any) -> None:
        self.close = stream.close

    def write(self, text: str) -> None:
        raise OSError(28, "No space left on device")


def test_a_link_to_a_file_of_results_stays_a_link(caption: Run, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text('{"image": "x", "error": "y"}\n', "utf-8")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    assert caption(photographs / "a.jpg", "--out", tmp_path / "link.jsonl").code == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len(lines((tmp_path / "real.jsonl").read_text("utf-8"))) == 1
