"""`vlrt bench`: every figure that it promises is there, and mistakes are found before anything is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]
QUICK = ("--repeats", 2, "--warmup", 1, "--processes", 0, "--batches", "1,3")


@pytest.fixture
def bench(command: Run, tiny_bundle_folder: Path) -> Run:
    return lambda task, *arguments: command("bench", task, *arguments, "--model", tiny_bundle_folder)


def test_captioning(bench: Run, photographs: Path, tmp_path: Path) -> None:
    target, plot = tmp_path / "r.json", tmp_path / "r.png"
    found = bench("caption", *QUICK, "--image", photographs / "a.jpg", "--json", target, "--plot", plot, "--beams", 2)
    assert found.code == 0
    report = json.loads(target.read_text("utf-8"))
    assert set(report["stages"]) == {"read", "encode", "decode", "all"}
    assert all(0 < stage["p50"] <= stage["p95"] for stage in report["stages"].values())
    assert all(stage["count"] == 2 for stage in report["stages"].values())
    assert report["step"]["count"] > 2
    assert set(report["throughput"]) == {"1", "3"}
    assert min(report["load_ms"], report["first_ms"], report["peak_mb"], *report["throughput"].values()) > 0
    assert report["process_ms"] is None
    assert report["options"] == {"repeats": 2, "warmup": 1, "num_beams": 2}
    assert report["machine"]["processor"]
    assert {"vlrt", "python", "onnxruntime", "numpy"} <= set(report["versions"])
    assert report["result"]
    assert report["result"] in found.out
    with Image.open(plot) as drawn:
        assert min(drawn.size) > 100


def test_answering(command: Run, tiny_copy: Path) -> None:
    described = json.loads((tiny_copy / "manifest.json").read_text("utf-8"))
    described |= {"tasks": ["caption", "answer"], "answer": {"question": "prompt", "template": "the {} on"}}
    (tiny_copy / "manifest.json").write_text(json.dumps(described), "utf-8")
    report = json.loads(command("bench", "answer", *QUICK, "--beams", 2, "--json", "--model", tiny_copy).out)
    assert set(report["stages"]) == {"read", "encode", "decode", "all"}
    assert report["step"]["p50"] > 0
    assert report["options"]["num_beams"] == 2
    assert report["result"]


@pytest.mark.parametrize("task", ["match", "search", "classify", "embed"])
def test_tasks_of_the_dual_encoder(bench: Run, task: str) -> None:
    report = json.loads(bench(task, *QUICK, "--json").out)
    assert {"read", "encode image", "all"} < set(report["stages"])
    assert report["step"] is None
    assert report["task"] == task


def test_profiles_of_every_graph(bench: Run, tmp_path: Path) -> None:
    folder = tmp_path / "profiles" / "of this run"
    assert bench("caption", "--profile", folder).code == 0
    profiles = [json.loads(path.read_text("utf-8")) for path in folder.iterdir()]
    assert len(profiles) == 3
    assert all(any(event["cat"] == "Node" for event in events) for events in profiles)


def test_whole_processes(bench: Run) -> None:
    report = json.loads(bench("caption", *QUICK[:4], "--processes", 1, "--batches", "1", "--json").out)
    assert report["process_ms"]["count"] == 1
    assert report["process_ms"]["p50"] > report["load_ms"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("caption", "--beams", 0), 2, "`num_beams` is 0"),
        (("match", "--beams", 2), 2, "`--beams` is for captions and answers only"),
        (("caption", "--batches", "1,x"), 2, "`--batches` is `1,x`, expected whole numbers"),
        (("caption", "--batches", "0"), 2, "batch sizes above zero"),
        (("caption", "--repeats", 0), 2, "invalid value for '--repeats'"),
        (("caption", "--image", "gone.jpg"), 1, "`gone.jpg` cannot be read"),
        (("caption", "--plot", "plot"), 2, "has no ending of a picture"),
        (("caption", "--json", "no/such/r.json"), 2, "the folder of `no/such/r.json` does not exist"),
        (("caption", "--device", "tpu"), 2, "unknown device `tpu`"),
        (("paint",), 2, "invalid value for"),
    ],
)
def test_mistakes(bench: Run, arguments: tuple[Any, ...], code: int, words: str) -> None:
    found = bench(*arguments, "--processes", 0)
    assert found.code == code
    assert words in found.err
    assert found.out == ""


def test_mistakes_are_found_before_processes_are_started(command: Run, bench: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("x")
    bench("caption", "--image", tmp_path / "empty.jpg").failed(1, "the image's bytes are empty")
    bench("caption", "--image", tmp_path / "text.jpg").failed(1, "is not an image")
    command("bench", "caption", "--model", "flickr8k-captionr").failed(1, "did you mean `flickr8k-captioner`")


def test_a_process_that_fails_says_why(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlrt.benchmark.LABELS", ("one",))
    found = bench("classify", *QUICK[:4], "--processes", 1)
    assert found.code == 1
    assert "error: the command under test failed: choosing needs at least two labels" in found.err
