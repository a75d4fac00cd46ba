"""Charts as SVG for a page: bars with their quartiles, lines, and a roofline.

Colours are attributes, over which the page's own style goes; so a chart is readable by itself too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 16, 44
_HEIGHT = 300
_ROW = 34
_LABEL = 150
_ROOM = WIDTH - _LABEL - 170
COLOURS = ("#2563c9", "#d97706", "#0f9b8e", "#b4419a", "#6b7280", "#65a30d")
"""Of sides and graphs, in their order; they begin again where there are more."""


@dataclass(frozen=True)
class Bar:
    """One bar: its length, the quartiles, what stands behind it, and which colour it has."""

    label: str
    value: float
    low: float
    high: float
    note: str
    colour: int


def bars(rows: Sequence[Bar], unit: str, title: str) -> str:
    """Horizontal bars, each with a whisker from quartile to quartile."""
    longest = max((row.high for row in rows), default=0.0) or 1.0
    drawn = []
    for place, row in enumerate(rows):
        top, length = 6 + place * _ROW, _ROOM * row.value / longest
        low, high = (_LABEL + _ROOM * value / longest for value in (row.low, row.high))
        middle = top + 11
        drawn.append(
            f'<text x="{_LABEL - 10}" y="{top + 16}" class="name" text-anchor="end">{escape(row.label)}</text>'
            f'<rect x="{_LABEL}" y="{top}" width="{max(1.0, length):.1f}" height="22" rx="3" {_fill(row.colour)}/>'
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"'
            f' class="whisker" stroke="#555" fill="none"/>'
            f'<text x="{max(_LABEL + length, high) + 8:.1f}" y="{top + 16}" class="value">{number(row.value)} {unit}'
            f'<tspan class="soft" dx="8">{escape(row.note)}</tspan></text>'
        )
    return _svg(6 + _ROW * len(rows), "".join(drawn), title)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_name: str, y_name: str, title: str) -> str:
    """A line with points for each name; the horizontal axis shows the values that occur."""
    points = [point for line in series.values() for point in line]
    right, highest = max(x for x, _ in points), max(y for _, y in points) or 1.0
    left = min(x for x, _ in points)
    ticks = _ticks(highest)
    axes = _Axes(_linear(left, right, _LEFT, WIDTH - _RIGHT - 110), _linear(0, ticks[-1], _HEIGHT - _BOTTOM, _TOP))
    drawn = [_grid(axes, ticks), *(_x_tick(axes, x) for x in sorted({x for x, _ in points}))]
    ends = _spread([axes.y(line[-1][1]) for line in series.values()])
    for colour, ((name, line), end) in enumerate(zip(series.items(), ends)):
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line)
        dots = "".join(f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4" {_fill(colour)}/>' for x, y in line)
        label = f'<text x="{axes.x(line[-1][0]) + 10:.1f}" y="{end + 4:.1f}" {_text(colour)}>{escape(name)}</text>'
        drawn.append(f'<polyline points="{path}" {_stroke(colour)}/>{dots}{label}')
    return _svg(_HEIGHT, "".join(drawn) + _names(x_name, y_name), title)


def roofline(roofs: tuple[float, float], places: Mapping[str, tuple[float, float]], title: str) -> str:
    """Operations a second over operations per byte, both logarithmic, below what the machine can do.

    Args:
        roofs: 10^9 operations, and 10^9 bytes, a second.
        places: name -> (operations per byte, 10^9 operations a second).
    """
    gflops, gbytes = roofs
    ridge = gflops / gbytes
    xs = [ridge, *(x for x, _ in places.values())]
    left, right = _decade(min(xs) / 3, math.floor), _decade(max(xs) * 3, math.ceil)
    lowest = min([gbytes * left, *(y for _, y in places.values())])
    bottom, top = _decade(lowest, math.floor), _decade(gflops * 1.2, math.ceil)
    axes = _Axes(_logarithmic(left, right, _LEFT, WIDTH - _RIGHT), _logarithmic(bottom, top, _HEIGHT - _BOTTOM, _TOP))
    start = max(left, bottom / gbytes)
    roof = [(start, gbytes * start), (ridge, gflops), (right, gflops)]
    path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in roof)
    drawn = [_grid(axes, _decades(bottom, top)), *(_x_tick(axes, x) for x in _decades(left, right))]
    drawn.append(f'<polyline points="{path}" class="roof" stroke="#333" stroke-width="2" fill="none"/>')
    drawn.append(
        f'<text x="{WIDTH - _RIGHT - 4}" y="{axes.y(gflops) - 7:.1f}" class="soft" text-anchor="end">'
        f"{number(gflops)} GFLOP/s, {number(gbytes)} GB/s measured</text>"
    )
    ends = _spread([axes.y(y) for _, y in places.values()])
    for colour, ((name, (x, y)), end) in enumerate(zip(places.items(), ends)):
        share = y / min(gflops, gbytes * x)
        leftward = axes.x(x) > WIDTH * 0.62
        anchor = 'text-anchor="end"' if leftward else ""
        at = axes.x(x) + (-10 if leftward else 10)
        drawn.append(
            f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="5" {_fill(colour)}/>'
            f'<text x="{at:.1f}" y="{end + 4:.1f}" {_text(colour)} {anchor}>{escape(name)}, {share:.0%}</text>'
        )
    return _svg(_HEIGHT, "".join(drawn) + _names("operations per byte", "GFLOP/s"), title)


def number(value: float) -> str:
    """A value with three digits that count, and no more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass(frozen=True)
class _Axes:
    """From values to places in the picture."""

    x: Callable[[float], float]
    y: Callable[[float], float]


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / span


def _logarithmic(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    place = _linear(math.log10(low), math.log10(high), start, end)
    return lambda value: place(math.log10(value))


def _decade(value: float, toward: Callable[[float], int]) -> float:
    return float(10.0 ** toward(math.log10(value)))


def _decades(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]


def _ticks(highest: float) -> list[float]:
    """From nothing to a little above the highest value, in four or five round steps."""
    raw = highest / 4
    unit = 10 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= raw)
    return [step * i for i in range(math.ceil(highest / step) + 1)]


def _spread(places: Sequence[float]) -> list[float]:
    """Heights of labels moved apart until none covers another."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found, last = list(places), -math.inf
    for i in order:
        found[i] = last = max(places[i], last + 17)
    return found


def _grid(axes: _Axes, ticks: Sequence[float]) -> str:
    return "".join(
        f'<path d="M{_LEFT} {axes.y(tick):.1f}H{WIDTH - _RIGHT}" class="grid" stroke="#ddd"/>'
        f'<text x="{_LEFT - 8}" y="{axes.y(tick) + 4:.1f}" class="soft" text-anchor="end">{tick:,g}</text>'
        for tick in ticks
    )


def _x_tick(axes: _Axes, value: float) -> str:
    place = f'x="{axes.x(value):.1f}" y="{_HEIGHT - _BOTTOM + 18}"'
    return f'<text {place} class="soft" text-anchor="middle">{value:,g}</text>'


def _names(x_name: str, y_name: str) -> str:
    return (
        f'<text x="{(WIDTH + _LEFT) / 2}" y="{_HEIGHT - 6}" class="soft" text-anchor="middle">{escape(x_name)}</text>'
        f'<text x="14" y="{(_HEIGHT - _BOTTOM + _TOP) / 2}" class="soft" text-anchor="middle" '
        f'transform="rotate(-90 14 {(_HEIGHT - _BOTTOM + _TOP) / 2})">{escape(y_name)}</text>'
    )


def _fill(colour: int) -> str:
    return f'class="fill{colour % len(COLOURS)}" fill="{COLOURS[colour % len(COLOURS)]}"'


def _text(colour: int) -> str:
    return f'class="text{colour % len(COLOURS)}" fill="{COLOURS[colour % len(COLOURS)]}"'


def _stroke(colour: int) -> str:
    place = colour % len(COLOURS)
    return f'class="line{place}" stroke="{COLOURS[place]}" stroke-width="2.5" fill="none"'


def _svg(height: float, body: str, title: str) -> str:
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" {font} role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{body}</svg>"
    )
