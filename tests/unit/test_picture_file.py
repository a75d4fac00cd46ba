"""Pictures that say how they were made."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlrt.errors import ImageError, UsageError, VlrtError
from vlrt.picture_file import Painting, grid, read_parameters, save_animation

PARAMETERS = {"task": "generate", "prompt": "ein Hündchen\n😀", "seed": 2**64 - 1, "steps": {"a": 3}, "guidance": 7.5}


def colour(value: int) -> Image.Image:
    return Image.new("RGB", (6, 4), (value, value, value))


def test_a_png_keeps_the_parameters(tmp_path: Path) -> None:
    painting = Painting(colour(9), PARAMETERS)
    painting.save(tmp_path / "a.png")
    assert read_parameters(tmp_path / "a.png") == PARAMETERS
    assert painting.seed == 2**64 - 1
    assert painting.pixels.shape == (4, 6, 3)
    with Image.open(tmp_path / "a.png") as found:
        assert np.array_equal(np.asarray(found), painting.pixels)


def test_other_formats_hold_the_picture_alone(tmp_path: Path) -> None:
    Painting(colour(9), PARAMETERS).save(str(tmp_path / "a.jpg"))
    with pytest.raises(ImageError, match="not a PNG"):
        read_parameters(tmp_path / "a.jpg")


def test_what_cannot_be_written(tmp_path: Path) -> None:
    painting = Painting(colour(9))
    for name, words in (("a.txt", "no ending of a picture"), ("nowhere/a.png", "does not exist")):
        with pytest.raises(UsageError, match=words):
            painting.save(tmp_path / name)
    (tmp_path / "f.png").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        painting.save(tmp_path / "f.png")
    assert os.listdir(tmp_path) == ["f.png"]


def test_a_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Painting(colour(1)).save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(VlrtError, match="No space left"):
        Painting(colour(2)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_grid_is_as_square_as_may_be() -> None:
    sheet = np.asarray(grid([colour(value) for value in (10, 20, 30, 40, 50)]))
    assert sheet.shape == (8, 18, 3)
    assert [sheet[0, 0, 0], sheet[0, 6, 0], sheet[0, 12, 0], sheet[4, 0, 0], sheet[4, 6, 0], sheet[4, 12, 0]] == [
        *(10, 20, 30, 40, 50),
        255,
    ]
    assert grid([colour(1), colour(2)], columns=1).size == (6, 8)


def test_an_animation(tmp_path: Path) -> None:
    save_animation([colour(value) for value in (10, 200, 90)], tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames == 3
    with pytest.raises(VlrtError, match="cannot be written"):
        save_animation([colour(1)], tmp_path / "nowhere" / "a.gif")
