"""Benchmarks as one HTML page that needs nothing beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from vlrt.svg_chart import COLOURS, Bar, bars, lines, number, roofline

_STYLE = """
:root { --ink: #1d2330; --soft: #667085; --line: #e4e7ec; --paper: #fff; --page: #f5f6f8; --c0: #2563c9; --c1: #d97706;
  --c2: #0f9b8e; --c3: #b4419a; --c4: #6b7280; --c5: #65a30d; --good: #0a7d4f; --bad: #b42318 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaf0; --soft: #98a2b3; --line: #333a47; --paper: #1b2029;
  --page: #12151b; --c0: #6ea8ff; --c1: #f5a742; --c2: #3fd0c0; --c3: #e58ad0; --c4: #a3acba; --c5: #a3d65c;
  --good: #4cc38a; --bad: #ff8a80 } }
* { box-sizing: border-box } body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 860px; margin: 0 auto; padding: 40px 20px 80px }
h1 { font-size: 28px; margin: 0 0 4px; letter-spacing: -.02em } h2 { font-size: 20px; margin: 44px 0 4px }
h3 { font-size: 15px; margin: 0 0 12px } h4 { font-size: 13px; margin: 12px 0 4px; color: var(--soft) }
td small { display: block; min-width: 220px; white-space: normal; text-align: left } p { margin: 4px 0 12px }
.soft, small { color: var(--soft); fill: var(--soft) }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 20px; margin: 16px 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { font-weight: 600; color: var(--soft); font-size: 13px } th, td { padding: 7px 10px; text-align: right;
  border-bottom: 1px solid var(--line); white-space: nowrap } tr:last-child td { border-bottom: 0 }
th:first-child, td:first-child { text-align: left; padding-left: 0 } td.text { text-align: left; white-space: normal }
.ours { font-weight: 600 } .ahead { color: var(--good) } .behind { color: var(--bad) }
svg { width: 100%; height: auto; display: block; font-size: 13px } svg text { fill: var(--ink) }
svg text.soft, svg tspan.soft { fill: var(--soft) } .name { font-weight: 500 }
.grid { stroke: var(--line); fill: none } .whisker { stroke: var(--ink); opacity: .55; fill: none }
.roof { stroke: var(--ink); stroke-width: 2; fill: none }
details { margin-top: 28px } summary { cursor: pointer; color: var(--soft) } pre { overflow-x: auto; font-size: 12px }
"""


def page(
    documents: Sequence[Mapping[str, Any]], further: Mapping[str, Any] | None = None, title: str = "vlrt bench"
) -> str:
    """The page of one or several benchmarks.

    Args:
        documents: as `vlrt bench --json` writes them, each with `versus` and `roofline` where they were measured.
        further: other measurements by name, JSON values of any form.
        title: its headline.
    """
    colours = "".join(
        f".fill{i} {{ fill: var(--c{i}) }} .line{i} {{ stroke: var(--c{i}); stroke-width: 2.5; fill: none }} "
        f"svg text.text{i} {{ fill: var(--c{i}); font-weight: 600 }}"
        for i in range(len(COLOURS))
    )
    data = escape(json.dumps([*documents, *([further] if further else [])], indent=1))
    others = "".join(_further(name, value) for name, value in (further or {}).items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{colours}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{_machine(documents)}{''.join(map(_benchmark, documents))}{others}"
        f"<details><summary>All figures as JSON</summary><pre>{data}</pre></details></main></body></html>\n"
    )


def _machine(documents: Sequence[Mapping[str, Any]]) -> str:
    if not documents:
        return "<p>Nothing was measured.</p>"
    first = documents[0]
    machine, versions = first["machine"], first["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    what = f"{machine['processor']}, {machine['processors']} processors, {machine['platform']}"
    return f'<p class="soft">{escape(what)}<br>{escape(packages)}</p>'


def _benchmark(document: Mapping[str, Any]) -> str:
    parts = [f"<h2>{escape(document['task'])} with {escape(document['bundle'])}</h2>"]
    threads = f"{document['threads']} threads, {document['device']}; result: {_short(document['result'])}"
    parts.append(f'<p class="soft">{escape(threads)}</p>')
    if document.get("versus"):
        parts += _versus(document["versus"])
    parts.append(_stages(document))
    if document.get("roofline"):
        parts.append(_roofline(document["roofline"]))
    return "".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= 90 else text[:89] + "…"


def _versus(versus: Mapping[str, Any]) -> Iterable[str]:
    figures, sides = versus["figures"], list(versus["sides"])
    points = list(dict.fromkeys((f["point"]["batch"], f["point"]["beams"]) for f in figures))
    length = f", {versus['tokens']} tokens" if versus["tokens"] else ""
    note = f"Medians of {versus['rounds']} rounds in which the sides took turns{length}; whiskers are quartiles."
    yield f"<section><h3>Beside others</h3><p class='soft'>{note}</p>{_figure_table(figures, sides, points)}</section>"
    charts = []
    for batch, beams in points:
        name = _point(batch, beams)
        chosen = [f for f in figures if (f["point"]["batch"], f["point"]["beams"]) == (batch, beams)]
        charts.append(f"<h4>{name}</h4>{bars([_bar(f, sides) for f in chosen], 'ms', f'latency, {name}')}")
    yield f"<section><h3>Latency</h3>{''.join(charts)}</section>"
    for axis, other in (("beams", "batch"), ("batch", "beams")):
        series = {s: _series(figures, s, axis, other) for s in sides}
        if max(map(len, series.values()), default=0) > 1:
            chart = lines(series, axis, "ms", f"latency over {axis}")
            yield f"<section><h3>Latency over {axis}</h3>{chart}</section>"
    yield f"<section><h3>What each side takes</h3>{_side_table(versus)}{_skipped(versus['skipped'])}</section>"


def _point(batch: int, beams: int) -> str:
    return f"batch {batch}" if beams == 1 else f"batch {batch}, {beams} beams"


def _bar(figure: Mapping[str, Any], sides: Sequence[str]) -> Bar:
    side = figure["side"]
    ratio = "" if side == sides[0] else f"{figure['ratio']:.2f} ×"
    return Bar(side, figure["median"], figure["low"], figure["high"], ratio, sides.index(side))


def _series(figures: Sequence[Mapping[str, Any]], side: str, axis: str, other: str) -> list[tuple[float, float]]:
    chosen = [f for f in figures if f["side"] == side and f["point"][other] == 1]
    return sorted((float(f["point"][axis]), float(f["median"])) for f in chosen)


def _figure_table(figures: Sequence[Mapping[str, Any]], sides: Sequence[str], points: Sequence[tuple[int, int]]) -> str:
    head = ["", *sides, *(f"{side} / {sides[0]}" for side in sides[1:]), "same result"]
    rows = []
    for batch, beams in points:
        found = {f["side"]: f for f in figures if (f["point"]["batch"], f["point"]["beams"]) == (batch, beams)}
        cells = [_point(batch, beams), *(f"{number(found[side]['median'])} ms" for side in sides)]
        cells += [_ratio(found[side]["ratio"]) for side in sides[1:]]
        rows.append([*cells, "yes" if all(f["agrees"] for f in found.values()) else "no"])
    return _table(head, rows)


def _ratio(value: float) -> str:
    kind = "ahead" if value >= 1 else "behind"
    return f'<span class="{kind}">{value:.2f} ×</span>'


def _side_table(versus: Mapping[str, Any]) -> str:
    rows = []
    for name, side in versus["sides"].items():
        libraries = ", ".join(f"{library} {version}" for library, version in side["versions"].items())
        rows.append(
            [
                name,
                f"{number(versus['first_ms'][name])} ms",
                f"{number(versus['load_ms'][name])} ms",
                f"{number(side['peak_mb'])} MB",
                f"{number(side['install_mb'])} MB",
                f"<small>{escape(side['note'])}<br>{escape(libraries)}</small>",
            ]
        )
    head = ["", "first result", "loading", "peak memory", "libraries", "precision and versions"]
    return _table(head, rows) + f"<small>The bundle itself takes {number(versus['bundle_mb'])} MB.</small>"


def _skipped(skipped: Mapping[str, str]) -> str:
    if not skipped:
        return ""
    rows = "".join(f"<li>{escape(name)}: {escape(why)}</li>" for name, why in skipped.items())
    return f"<p><small>Not measured:</small></p><small><ul>{rows}</ul></small>"


def _stages(document: Mapping[str, Any]) -> str:
    rows = [["load", f"{number(document['load_ms'])} ms", ""]]
    if document.get("process_ms"):
        rows.insert(0, ["whole process", *_latency(document["process_ms"])])
    rows.append(["first result after loading", f"{number(document['first_ms'])} ms", ""])
    rows += [[name, *_latency(latency)] for name, latency in document["stages"].items()]
    if document.get("step"):
        rows.append(["one step", *_latency(document["step"])])
    rows += [[f"batch {size}", f"{number(rate)} /s", ""] for size, rate in document["throughput"].items()]
    rows.append(["peak memory", f"{number(document['peak_mb'])} MB", ""])
    return f"<section><h3>Stages</h3>{_table(['', 'median', '95th percentile'], rows)}</section>"


def _latency(latency: Mapping[str, Any]) -> list[str]:
    return [f"{number(latency['p50'])} ms", f"{number(latency['p95'])} ms"]


def _roofline(found: Mapping[str, Any]) -> str:
    roofs = (found["roofs"]["gflops"], found["roofs"]["gbytes"])
    places = {place["role"]: (place["intensity"], place["gflops"]) for place in found["places"]}
    note = "Each graph's matrix products and convolutions, with the share of what the machine leaves possible there."
    chart = roofline(roofs, places, "roofline")
    return f"<section><h3>Position under the roofline</h3><p class='soft'>{note}</p>{chart}</section>"


def _further(name: str, value: Any) -> str:
    rows = [[where, escape(number(v) if isinstance(v, float) else str(v))] for where, v in _leaves(value, "")]
    return f"<h2>{escape(name)}</h2><section>{_table(['', ''], rows)}</section>"


def _leaves(value: Any, where: str) -> Iterable[tuple[str, Any]]:
    """Numbers and words in a JSON value, each with the way to it."""
    if not isinstance(value, (dict, list)):
        yield where, value
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value, 1)
    for key, inner in pairs:
        yield from _leaves(inner, f"{where} · {key}" if where else str(key))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are text, or small pieces of HTML made here; the first column is always text."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><td>{escape(row[0])}</td>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
