"""Charts of a benchmark, drawn with Pillow so that the runtime needs no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

_INK = (40, 40, 40)
_SOFT = (130, 130, 130)
_PAPER = (255, 255, 255)
_BAR = (46, 116, 181)
_PALE = (189, 215, 238)
_MARGIN = 24
_ROW = 30
_WIDTH = 820
_LABEL = 200


def bars(
    title: str, unit: str, values: Mapping[str, tuple[float, float]], footnote: str = "", larger_name: str = "p95"
) -> Image.Image:
    """Horizontal bars: for each name a value, and a second, larger one (the 95th percentile) in a paler tone behind.

    Args:
        title: headline.
        unit: of all values, written behind each.
        values: name -> (value, larger value); the latter may equal the former.
        footnote: a line below.
        larger_name: what the larger values are.
    """
    height = 3 * _MARGIN + 20 + _ROW * len(values) + (20 if footnote else 0)
    sheet = Image.new("RGB", (_WIDTH, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    large, font, small = (ImageFont.load_default(size=size) for size in (18, 14, 12))
    pen.text((_MARGIN, _MARGIN - 8), title, fill=_INK, font=large)
    longest = max((pair[1] for pair in values.values()), default=0.0) or 1.0
    room = _WIDTH - _LABEL - 2 * _MARGIN - 150
    for place, (name, (value, larger)) in enumerate(values.items()):
        top = _MARGIN + 32 + place * _ROW
        pen.text((_MARGIN, top + 3), name, fill=_INK, font=font)
        for length, colour in ((larger, _PALE), (value, _BAR)):
            pen.rectangle((_LABEL, top, _LABEL + max(1, round(room * length / longest)), top + _ROW - 10), fill=colour)
        text = f"{value:,.1f} {unit}" + (f"  ({larger_name} {larger:,.1f})" if larger != value else "")
        pen.text((_LABEL + round(room * larger / longest) + 8, top + 3), text, fill=_INK, font=font)
    if footnote:
        pen.text((_MARGIN, height - _MARGIN - 6), footnote, fill=_SOFT, font=small)
    return sheet


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Charts below each other."""
    sheet = Image.new("RGB", (_WIDTH, sum(chart.height for chart in sheets)), _PAPER)
    top = 0
    for chart in sheets:
        sheet.paste(chart, (0, top))
        top += chart.height
    return sheet
