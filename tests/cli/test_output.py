"""Progress: a moving line on a terminal, a line in a while elsewhere, and silence for what is quick."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from vlrt.commands import output
from vlrt.commands.output import Progress, ResultLines, to_json


class Screen(io.StringIO):
    def __init__(self, live: bool) -> None:
        super().__init__()
        self.live = live

    def isatty(self) -> bool:
        return self.live


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    return now


def run(screen: Screen, clock: list[float], monkeypatch: pytest.MonkeyPatch, seconds: float, done: int = 0) -> str:
    """Ten inputs of so many seconds each."""
    monkeypatch.setattr(output.sys, "stderr", screen)
    progress = Progress(10, "photographs")
    progress(done)
    for number in range(done + 1, 11):
        clock[0] += seconds
        progress(number)
    return screen.getvalue()


def test_a_line_that_moves(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    text = run(Screen(True), clock, monkeypatch, 2.0)
    shown = [part.rstrip() for part in text.split("\r")]
    assert shown[0] == "1/10 photographs, 0.5/s, 0:18 left"
    assert shown[4] == "5/10 photographs, 0.5/s, 0:10 left"
    assert shown[-1] == "10/10 photographs, 0.5/s"
    assert text.count("\n") == 1


def test_lines_in_a_log(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    text = run(Screen(False), clock, monkeypatch, 400.0)
    assert "\r" not in text
    assert text.splitlines()[0] == "1/10 photographs, 0.0/s, 1:00:00 left"
    assert text.splitlines()[-1] == "10/10 photographs, 0.0/s"
    text = run(Screen(False), clock, monkeypatch, 6.0)
    assert [line.partition("/")[0] for line in text.splitlines()] == ["2", "4", "6", "8", "10"]


def test_what_is_quick_is_silent_in_a_log(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(Screen(False), clock, monkeypatch, 0.5) == ""


def test_what_was_done_before_does_not_count_for_the_rate(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(Screen(True), clock, monkeypatch, 1.0, done=8).startswith("9/10 photographs, 1.0/s, 0:01 left")
    assert run(Screen(True), clock, monkeypatch, 1.0, done=10) == ""


def test_a_single_input_needs_no_progress(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(True)
    monkeypatch.setattr(output.sys, "stderr", screen)
    progress = Progress(1, "photographs")
    progress(0)
    clock[0] += 60
    progress(1)
    assert screen.getvalue() == ""


def test_json_is_readable_where_it_can_be() -> None:
    assert to_json({"image": "größe"}) == '{"image": "größe"}'
    assert to_json({"image": "a\udcff"}) == '{"image": "a\\udcff"}'
    assert json.loads(to_json({"image": "ö\udcff"})) == {"image": "ö\udcff"}


def test_a_replacing_file_takes_its_place_at_the_end_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.jsonl"
    out.write_text("before", "utf-8")
    with ResultLines(False, out, resume=False) as lines:
        lines.result({"image": "a"}, "a")
        assert out.read_text("utf-8") == "before"
    assert out.read_text("utf-8") == '{"image": "a"}\n'
    with pytest.raises(TypeError), ResultLines(False, out, resume=False) as lines:
        lines.result({"image": object()}, "no JSON")
    assert out.read_text("utf-8") == '{"image": "a"}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]
    assert capsys.readouterr().out == ""
