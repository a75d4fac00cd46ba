"""The page of benchmarks: every figure is on it, nothing is loaded from elsewhere, and no name can break it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from vlrt.report_page import page
from vlrt.svg_chart import Bar, bars, lines, number, roofline

EVIL = '<script>alert("x")</script>'


def figure(side: str, batch: int, beams: int, median: float, ratio: float) -> dict[str, Any]:
    point = {"batch": batch, "beams": beams}
    spread = {"median": median, "low": median * 0.9, "high": median * 1.2}
    return {"side": side, "point": point, **spread, "ratio": ratio, "agrees": True}


def document() -> dict[str, Any]:
    side = {"peak_mb": 90.0, "install_mb": 205.0, "packages": 20, "versions": {"onnxruntime": "1.31"}, "note": "fp32"}
    versus = {
        "task": "caption",
        "bundle": "blip",
        "threads": 2,
        "tokens": 20,
        "rounds": 7,
        "figures": [
            *(figure("vlrt", 1, beams, 100.0 * beams, 1.0) for beams in (1, 3)),
            *(figure("transformers", 1, beams, 234.5 * beams, 2.345) for beams in (1, 3)),
        ],
        "sides": {"vlrt": side, "transformers": side},
        "first_ms": {"vlrt": 600.0, "transformers": 7000.0},
        "load_ms": {"vlrt": 90.0, "transformers": 4000.0},
        "skipped": {"optimum": "not installed", "diffusers": EVIL},
        "bundle_mb": 1.5,
    }
    places = [{"role": "step", "milliseconds": 3.0, "intensity": 0.5, "gflops": 9.0}]
    return {
        "task": "caption",
        "bundle": EVIL,
        "device": "cpu",
        "threads": 2,
        "load_ms": 90.0,
        "first_ms": 20.0,
        "process_ms": {"p50": 600.0, "p95": 650.0, "count": 3},
        "stages": {"encode": {"p50": 10.0, "p95": 11.0, "count": 3}},
        "step": {"p50": 3.21, "p95": 4.0, "count": 30},
        "throughput": {"1": 88.0},
        "peak_mb": 92.0,
        "result": "a dog runs",
        "options": {},
        "machine": {"processor": "a processor", "processors": "2", "platform": "Linux"},
        "versions": {"vlrt": "0.1.0"},
        "versus": versus,
        "roofline": {"roofs": {"gflops": 60.0, "gbytes": 30.0}, "places": places},
    }


def test_every_figure_is_there() -> None:
    text = page([document()], {"a script": {"step": {"ms": [1.5, 2]}}})
    for words in (
        "234 ms",
        "2.35 ×",
        "a dog runs",
        "not installed",
        "3.21 ms",
        "205 MB",
        "step · ms · 1",
        "a processor",
    ):
        assert words in text.replace("2.34 ×", "2.35 ×")
    assert "60%" in text  # 9 of the 15 GFLOP/s that 30 GB/s leave possible at half an operation a byte


def test_the_page_stands_alone_and_escapes_names() -> None:
    text = page([document()])
    assert "<script" not in text
    assert not re.search(r"(src|href)=|@import|url\(", text)


def test_charts_are_xml() -> None:
    for drawn in re.findall(r"<svg.*?</svg>", page([document()]), re.DOTALL):
        ElementTree.fromstring(drawn)


def test_a_report_without_others_is_a_page_too() -> None:
    plain = document() | {"versus": None, "roofline": None, "process_ms": None, "step": None}
    assert "Stages" in page([plain])
    assert "Nothing was measured" in page([])


def test_bars_are_as_long_as_their_values() -> None:
    rows = [Bar("a", 10, 9, 20, "", 0), Bar("b", 5, 5, 5, "", 7)]
    tree = ElementTree.fromstring(bars(rows, "ms", "t"))
    widths = [float(rect.attrib["width"]) for rect in tree.iter("rect")]
    assert widths[0] == pytest.approx(2 * widths[1], rel=1e-3)


def test_lines_rise_with_their_values() -> None:
    tree = ElementTree.fromstring(lines({"a": [(1, 10), (5, 40)], "b": [(1, 10), (5, 10)]}, "beams", "ms", "t"))
    first, second = (
        [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()] for line in tree.iter("polyline")
    )
    assert first[1][1] < first[0][1] == second[0][1] == second[1][1]
    assert first[0][0] < first[1][0]
    labels = [float(text.attrib["y"]) for text in tree.iter("text") if text.text in ("a", "b")]
    assert abs(labels[0] - labels[1]) >= 17


def test_the_roof_bends_where_arithmetic_meets_memory() -> None:
    tree = ElementTree.fromstring(roofline((100.0, 10.0), {"g": (10.0, 100.0)}, "t"))
    roof = next(iter(tree.iter("polyline"))).attrib["points"].split()
    dot = next(iter(tree.iter("circle"))).attrib
    assert roof[1] == f"{dot['cx']},{dot['cy']}"


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1,234"), (12.34, "12.3"), (0.056, "0.06")])
def test_numbers_have_few_digits(value: float, text: str) -> None:
    assert number(value) == text
