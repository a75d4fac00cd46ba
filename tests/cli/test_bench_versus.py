"""`vlrt bench --vs`: sides in processes of their own, those that cannot take part, and the page."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlrt.benchmark import synthetic_jpeg
from vlrt.benchmark_comparison import PEERS, VersusOptions
from vlrt.benchmark_job import Point
from vlrt.benchmark_process import Worker
from vlrt.benchmark_versus import compare
from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions
from vlrt.errors import UsageError, VlrtError

Run = Callable[..., Any]
QUICK = ("--repeats", 1, "--warmup", 0, "--processes", 0, "--batches", "1,2", "--rounds", 2, "--tokens", 3)


@pytest.fixture
def bench(command: Run, tiny_bundle_folder: Path) -> Run:
    return lambda task, *arguments: command("bench", task, *QUICK, *arguments, "--model", tiny_bundle_folder)


def test_embedding_beside_openvino(bench: Run, tmp_path: Path) -> None:
    target, html, plot = tmp_path / "r.json", tmp_path / "r.html", tmp_path / "r.png"
    found = bench("embed", "--vs", "openvino,ctranslate2", "--json", target, "--html", html, "--plot", plot)
    assert found.code == 0
    report = json.loads(target.read_text("utf-8"))
    versus = report["versus"]
    sides = {(f["side"], f["point"]["batch"]): f for f in versus["figures"]}
    assert set(sides) == {(side, batch) for side in ("vlrt", "openvino") for batch in (1, 2)}
    assert all(f["agrees"] and 0 < f["low"] <= f["median"] <= f["high"] for f in sides.values())
    assert sides["vlrt", 1]["ratio"] == 1
    assert versus["sides"]["openvino"]["install_mb"] > 1
    assert versus["sides"]["vlrt"]["peak_mb"] > 1
    assert versus["first_ms"]["vlrt"] > versus["load_ms"]["vlrt"] > 0
    assert list(versus["skipped"]) == ["ctranslate2"]
    assert report["roofline"]["places"]
    assert report["roofline"]["roofs"]["gbytes"] > 0
    assert "ctranslate2        skipped:" in found.out
    assert "openvino" in html.read_text("utf-8")
    assert plot.stat().st_size > 1000


def test_captions_over_beams(tiny_bundle_folder: Path) -> None:
    options = VersusOptions((), rounds=1, tokens=3, batches=(1, 2), beams=(1, 3))
    found = compare("caption", Bundle.open(tiny_bundle_folder), EngineOptions(threads=1), options, synthetic_jpeg())
    assert [figure.point.name for figure in found.figures] == ["batch 1", "batch 1, 3 beams", "batch 2"]
    assert found.tokens == 3
    assert found.threads == 1


def test_a_side_that_has_no_such_model_is_skipped_with_its_reason(tiny_bundle_folder: Path) -> None:
    options = VersusOptions(("openvino",), rounds=1, tokens=3, batches=(1,), beams=(1,))
    found = compare("caption", Bundle.open(tiny_bundle_folder), EngineOptions(threads=1), options, synthetic_jpeg())
    assert list(found.sides) == ["vlrt"]
    assert found.skipped["openvino"].startswith("it has no task of its own")


def test_sides_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch, tiny_bundle_folder: Path) -> None:
    monkeypatch.setitem(PEERS, "optimum", "no_such_module_at_all")
    options = VersusOptions(("optimum",), rounds=1, tokens=3, batches=(1,), beams=(1,))
    found = compare("caption", Bundle.open(tiny_bundle_folder), EngineOptions(threads=1), options, synthetic_jpeg())
    assert found.skipped == {"optimum": "not installed"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("caption", "--vs", "torchscript"), "there is no side `torchscript`"),
        (("search", "--vs", "all"), "`search` is not measured beside others"),
        (("caption", "--html", "no/such/r.html"), "the folder of `no/such/r.html` does not exist"),
    ],
)
def test_mistakes(bench: Run, arguments: tuple[Any, ...], words: str) -> None:
    bench(*arguments).failed(2, words)


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="above zero"):
        VersusOptions((), rounds=0)


def test_a_side_that_says_a_lot_does_not_stop_the_others() -> None:
    """What a library writes to its standard error goes to a file: a pipe that nobody reads fills up."""
    lines = "import sys, json; print(json.dumps({'load': 1}), flush=True)\n"
    lines += "for line in sys.stdin: sys.stderr.write('x' * 500_000); print(json.dumps({'result': [1]}), flush=True)"
    worker = Worker.start("loud", [sys.executable, "-c", lines], os.environ)
    try:
        assert worker.ask(Point(2))["result"] == [1]
    finally:
        worker.close()


def test_a_side_that_fails_says_its_last_words() -> None:
    with pytest.raises(VlrtError, match="`broken` failed: ValueError: no weights"):
        Worker.start("broken", [sys.executable, "-c", "raise ValueError('no weights')"], os.environ)


def test_other_devices_are_not_compared(tiny_bundle_folder: Path) -> None:
    bundle, engine = Bundle.open(tiny_bundle_folder), EngineOptions("cuda:0")
    with pytest.raises(UsageError, match="`cuda:0` is not compared"):
        compare("caption", bundle, engine, VersusOptions(()), b"")
