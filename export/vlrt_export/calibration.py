"""The photographs and sentences that reduced precision is calibrated on and admitted by."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from PIL import Image

from vlrt import image as pictures
from vlrt.errors import ImageError, UsageError
from vlrt_export.image_checks import noise_picture

CAPTIONS, QUESTIONS, PHOTOGRAPHS = "captions.jsonl", "questions.txt", "images"
FEWEST = 8
"""Photographs: half of them calibrate, half admit."""

MOST = 500
"""Photographs of each half."""

_RANGES = 32
"""Photographs of the first half that ranges are found on."""

QUESTIONS_ASKED = ("what is in the picture?", "how many people are there?", "what color is it?", "is it outdoors?")
SENTENCES = (
    "a dog runs on the grass",
    "two children play in the snow",
    "a man rides a bicycle down a hill",
    "a crowd of people in a city street",
    "a woman sits at a table with food",
    "a boat on the water at sunset",
    "a cat sleeps on a sofa",
    "a football player kicks the ball",
)

_SENTENCES = 128
"""Captions that serve as texts to embed."""

_SYNTHETIC = tuple((160 + 37 * i, 240 - 11 * i) for i in range(16))
_FORMAT = f"a folder of photographs; beside them may stand {CAPTIONS} (`image`, `captions` a line) and {QUESTIONS}"


@dataclass(frozen=True)
class Calibration:
    """Photographs in two halves, and what is said about them.

    Args:
        seen: those that ranges are found on.
        held_out: those that a reduced graph is admitted by; read when they are used.
        references: captions of each held-out photograph, where the folder has them.
        sentences: texts for models that embed or match them.
        questions: for models that answer.
        origin: what the certificate says they are.
        skipped: names of broken files.
    """

    seen: Sequence[Image.Image]
    held_out: Sequence[Image.Image]
    references: Sequence[Sequence[str]] = ()
    sentences: Sequence[str] = SENTENCES
    questions: Sequence[str] = QUESTIONS_ASKED
    origin: str = "photographs"
    skipped: Sequence[str] = ()

    def for_ranges(self) -> Calibration:
        """The first half in the place of the held-out one."""
        return replace(self, held_out=self.seen[:_RANGES], references=())


class Photographs(Sequence[Image.Image]):
    """Photographs in files, each read when it is asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, place: int) -> Image.Image: ...
    @overload
    def __getitem__(self, place: slice) -> Photographs: ...
    def __getitem__(self, place: int | slice) -> Image.Image | Photographs:
        if isinstance(place, slice):
            return Photographs(self._paths[place])
        return pictures.load(self._paths[place])


def synthetic() -> Calibration:
    """Pictures made of noise: enough to see that random weights survive, nothing to calibrate a real model on."""
    made = [noise_picture(*size) for size in _SYNTHETIC]
    return Calibration(made[::2], made[1::2], origin="synthetic pictures")


def read_calibration(folder: Path) -> Calibration:
    """Reads a folder; every second photograph is held out. Broken ones are left out and named.

    Raises:
        UsageError: no such folder, or fewer than `FEWEST` photographs that can be read.
    """
    if not folder.is_dir():
        raise UsageError(f"`{folder}` is not a folder", f"give --calibration {_FORMAT}")
    captions = _captions(folder / CAPTIONS)
    found, skipped = _readable(_photographs(folder, captions))
    if len(found) < FEWEST:
        broken = f", {len(skipped)} broken ones not counted" if skipped else ""
        what = f"`{folder}` holds {len(found)} photographs{broken}, expected at least {FEWEST}"
        raise UsageError(what, "give more of what the model will see; fifty to a few hundred are good")
    held_out = found[1::2]
    references = [captions[path.name] for path in held_out] if captions else []
    return Calibration(
        Photographs(found[::2]),
        Photographs(held_out),
        references,
        [texts[0] for texts in references][:_SENTENCES] or SENTENCES,
        _lines(folder / QUESTIONS) or QUESTIONS_ASKED,
        f"{len(found)} photographs",
        skipped,
    )


def _photographs(folder: Path, captions: Mapping[str, Any]) -> list[Path]:
    inside = folder / PHOTOGRAPHS if (folder / PHOTOGRAPHS).is_dir() else folder
    if captions:
        return [inside / name for name in captions][: 2 * MOST]
    return sorted(p for p in inside.iterdir() if p.suffix.lower() in pictures.SUFFIXES)[: 2 * MOST]


def _readable(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    found, skipped = [], []
    for path in paths:
        try:
            pictures.load(path)
        except ImageError:
            skipped.append(path.name)
        else:
            found.append(path)
    return found, skipped


def _captions(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        return {}
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found = {str(line["image"]): [str(text) for text in line["captions"]] for line in lines}
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"`{path}` holds other lines than `image` and `captions`", f"give {_FORMAT}") from None
    if not all(found.values()):
        raise UsageError(f"`{path}` has a photograph without captions", f"give {_FORMAT}")
    return found


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
