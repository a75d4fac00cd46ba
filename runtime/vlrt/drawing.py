"""Pictures for people: attention maps over a photograph, and grids of photographs."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vlrt.errors import UsageError, VlrtError, one_line

_TILE = 224
_GAP = 8
_LINE = 22
_COLUMNS = 5
_INK = (20, 20, 20)
_PAPER = (255, 255, 255)


def attention_figure(
    picture: Image.Image, words: Sequence[str], maps: NDArray[np.float32], title: str = ""
) -> Image.Image:
    """The photograph, then once per word with where the model looked lit up, as in Show, Attend and Tell, figure 2.

    Args:
        picture: the photograph, RGB.
        words: one per map.
        maps: float32 [words, rows, columns], non-negative; a map over the whole photograph stretched.
        title: a line above the tiles.
    """
    width, height = _tile_size(picture)
    small = picture.resize((width, height), Image.Resampling.BICUBIC)
    tiles = [small, *(_lit(small, attention) for attention in maps)]
    return _lay_out(tiles, ["", *words], title)


def _lit(picture: Image.Image, attention: NDArray[np.float32]) -> Image.Image:
    """The photograph dimmed where the model did not look: the map, smoothly enlarged and scaled to its maximum."""
    strongest = float(attention.max()) or 1.0
    mask = Image.fromarray((attention * (255.0 / strongest)).clip(0, 255).astype(np.uint8))
    smooth = np.asarray(mask.resize(picture.size, Image.Resampling.BICUBIC), dtype=np.float32)[..., None] / 255.0
    pixels = np.asarray(picture, dtype=np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    shown = (0.25 * grey) * (1 - smooth) + (pixels * 0.75 + 64) * smooth
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def photo_grid(pictures: Sequence[Image.Image], labels: Sequence[str], title: str = "") -> Image.Image:
    """Photographs side by side with a line below each.

    Args:
        pictures: RGB, of any sizes; scaled into equal tiles with their shape kept.
        labels: one per picture.
        title: a line above the tiles.
    """
    tiles = []
    for picture in pictures:
        tile = Image.new("RGB", (_TILE, _TILE), _PAPER)
        width, height = _tile_size(picture)
        tile.paste(picture.resize((width, height), Image.Resampling.LANCZOS), ((_TILE - width) // 2, _TILE - height))
        tiles.append(tile)
    return _lay_out(tiles, labels, title)


def save(picture: Image.Image, target: Path) -> None:
    """Writes a picture in the format of its name's ending, under a temporary name first.

    Raises:
        VlrtError: an unknown ending, or the place cannot be written.
    """
    kind = check_target(target)
    temporary = target.with_name(f".{target.name}.part")
    try:
        picture.save(temporary, format=kind)
        os.replace(temporary, target)
    except (OSError, ValueError) as error:  # ValueError: a format that does not hold this picture
        reason = getattr(error, "strerror", None) or error
        raise VlrtError(f"`{target}` cannot be written: {reason}", "choose another place or ending") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_target(target: Path) -> str:
    """Pillow's name of the format that a file's ending means; called early, before minutes of work.

    Raises:
        UsageError: an unknown ending, or a folder that does not exist.
    """
    kind = Image.registered_extensions().get(target.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise UsageError(f"`{target.name}` has no ending of a picture", "use .png or .jpg")
    if not target.parent.is_dir():
        raise UsageError(f"the folder `{target.parent}` of `{target.name}` does not exist", "make it first")
    return kind


def _tile_size(picture: Image.Image) -> tuple[int, int]:
    scale = _TILE / max(picture.size)
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def _lay_out(tiles: Sequence[Image.Image], labels: Sequence[str], title: str) -> Image.Image:
    columns = max(1, min(_COLUMNS, len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = (max((tile.size[axis] for tile in tiles), default=_TILE) for axis in (0, 1))
    top = _LINE + _GAP if title else 0
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, top + rows * (height + _LINE + _GAP) + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    if title:
        pen.text((_GAP, _GAP), _fit(pen, title, sheet.width - 2 * _GAP, font), fill=_INK, font=font)
    for place, (tile, label) in enumerate(zip(tiles, labels)):
        x = _GAP + place % columns * (width + _GAP)
        y = top + _GAP + place // columns * (height + _LINE + _GAP)
        sheet.paste(tile, (x, y))
        pen.text((x, y + height + 2), _fit(pen, label, width, font), fill=_INK, font=font)
    return sheet


def _fit(pen: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text in one line, cut with an ellipsis where it is wider than `width` pixels."""
    text = one_line(text)
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
