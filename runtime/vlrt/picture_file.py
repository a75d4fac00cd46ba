"""Pictures that were made, and files of them that say how."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from vlrt.errors import ImageError, UsageError, VlrtError
from vlrt.whole_file import write_whole

CHUNK = "vlrt"
"""Keyword of the PNG text chunk that holds the parameters as JSON."""

_LARGEST_CHUNK = 1 << 20


@dataclass(frozen=True)
class Painting:
    """A picture that a model made.

    Args:
        picture: 8-bit RGB.
        parameters: everything that makes it again, JSON types only: ``task``, ``model``, ``prompt``, ``seed``, …
        timings: seconds by stage.
    """

    picture: Image.Image
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The picture as an array: uint8 [H, W, 3]."""
        return np.asarray(self.picture, dtype=np.uint8)

    @property
    def seed(self) -> int:
        """The seed that it was made with."""
        return int(self.parameters.get("seed", 0))

    def save(self, target: str | os.PathLike[str]) -> None:
        """Writes the picture whole or not at all, in the format of its name's ending; a PNG keeps the parameters.

        Raises:
            VlrtError: an unknown ending, or the place cannot be written.
        """
        save_picture(self.picture, Path(target), self.parameters)


def save_picture(picture: Image.Image, target: Path, parameters: Mapping[str, Any] | None = None) -> None:
    """Writes a picture whole or not at all; in a PNG, the parameters go into the text chunk `vlrt`.

    Raises:
        VlrtError: an unknown ending, or the place cannot be written.
    """
    kind = check_picture_target(target)
    more: dict[str, Any] = {}
    if kind == "PNG" and parameters:
        chunk = PngInfo()
        chunk.add_text(CHUNK, json.dumps(parameters))
        more["pnginfo"] = chunk
    content = io.BytesIO()
    try:
        picture.save(content, format=kind, **more)
        write_whole(target, content.getvalue())
    except (OSError, ValueError) as error:  # ValueError: a format that does not hold this picture
        reason = getattr(error, "strerror", None) or error
        raise VlrtError(f"`{target}` cannot be written: {reason}", "choose another place or ending") from None


def save_animation(pictures: Sequence[Image.Image], target: Path, milliseconds: int = 125) -> None:
    """Writes pictures one after the other as an endless GIF, whole or not at all.

    Raises:
        VlrtError: the place cannot be written.
    """
    content = io.BytesIO()
    pictures[0].save(
        content, format="GIF", save_all=True, append_images=list(pictures[1:]), duration=milliseconds, loop=0
    )
    try:
        write_whole(target, content.getvalue())
    except OSError as error:
        raise VlrtError(f"`{target}` cannot be written: {error.strerror}", "choose another place") from None


def check_picture_target(target: Path) -> str:
    """Pillow's name of the format that a file's ending means; called early, before minutes of work.

    Raises:
        UsageError: an unknown ending, a folder, or one that does not exist.
    """
    kind = Image.registered_extensions().get(target.suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise UsageError(f"`{target.name}` has no ending of a picture", "use .png, which keeps the parameters")
    if not target.parent.is_dir():
        raise UsageError(f"the folder `{target.parent}` of `{target.name}` does not exist", "make it first")
    if target.is_dir():
        raise UsageError(f"`{target}` is a folder, expected a file's name", f"-o {target / 'picture.png'}")
    return kind


def grid(pictures: Sequence[Image.Image], columns: int = 0) -> Image.Image:
    """Pictures of one size side by side, at their own size; as square as may be where `columns` is 0."""
    across = columns or math.ceil(math.sqrt(len(pictures)))
    width, height = pictures[0].size
    sheet = Image.new("RGB", (across * width, math.ceil(len(pictures) / across) * height), (255, 255, 255))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % across * width, place // across * height))
    return sheet


def read_parameters(source: Path) -> dict[str, Any]:
    """What a picture says of how it was made.

    Raises:
        ImageError: not a picture, or one that says nothing we understand.
    """
    try:
        with Image.open(source, formats=["PNG"]) as picture:
            text = picture.info.get(CHUNK) or getattr(picture, "text", {}).get(CHUNK)
    except FileNotFoundError:
        raise ImageError(f"`{source}` does not exist", "check the name") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise ImageError(f"`{source}` is not a PNG we can read", "only PNG files keep how they were made") from None
    if not isinstance(text, str):
        raise ImageError(f"`{source}` does not say how it was made", "`vlrt run generate -o FILE.png` writes that")
    try:
        value = json.loads(text) if len(text) <= _LARGEST_CHUNK else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("task"), str):
        raise ImageError(f"what `{source}` says of how it was made is damaged")
    return value
