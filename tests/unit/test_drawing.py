"""Pictures for people: the bright places are those that were looked at, and files appear whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlrt import drawing
from vlrt.drawing import attention_figure, photo_grid, save
from vlrt.errors import VlrtError

Make = Callable[..., Image.Image]


def one_bright(row: int, column: int) -> np.ndarray:
    attention = np.zeros((1, 4, 4), np.float32)
    attention[0, row, column] = 1
    return attention


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 3), (3, 0), (3, 3)])
def test_light_falls_where_the_model_looked(row: int, column: int) -> None:
    """On a grey photograph the second tile is brightest in the quarter of the map's one."""
    picture = Image.new("RGB", (224, 224), (128, 128, 128))
    figure = np.asarray(attention_figure(picture, ["dog"], one_bright(row, column))).astype(int)
    left = drawing._GAP * 2 + 224
    tile = figure[drawing._GAP : drawing._GAP + 224, left : left + 224].sum(axis=2)
    quarters = {(r, c): tile[r * 56 : r * 56 + 56, c * 56 : c * 56 + 56].mean() for r in range(4) for c in range(4)}
    assert max(quarters, key=lambda place: quarters[place]) == (row, column)
    assert np.array_equal(figure[drawing._GAP + 5, drawing._GAP + 5], [128, 128, 128]), (
        "the first tile is the photograph"
    )


def test_scale_does_not_matter(photograph: Make) -> None:
    picture, maps = photograph(), np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
    one, other = (np.asarray(attention_figure(picture, ["a", "dog"], maps * scale)) for scale in (1, 0.001))
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_degenerate_pictures(photograph: Make) -> None:
    for size in ((1, 1), (500, 1), (1, 500)):
        attention_figure(photograph(*size), ["a"], np.zeros((1, 4, 4), np.float32))
        photo_grid([photograph(*size)], ["a"])
    attention_figure(photograph(), [], np.zeros((0, 4, 4), np.float32))
    assert photo_grid([], []).size[0] > 0


def test_long_and_strange_labels_stay_in_their_tile(photograph: Make) -> None:
    labels = ["a" * 500, "größe 写真", "line\nbreak", ""]
    sheet = photo_grid([photograph(seed=i) for i in range(4)], labels, "title " * 200)
    plain = photo_grid([photograph(seed=i) for i in range(4)], ["", "", "", ""], "t")
    assert sheet.size == plain.size


def test_grid_keeps_proportions(photograph: Make) -> None:
    sheet = photo_grid([Image.new("RGB", (100, 50), "red")], ["a"])
    red = np.argwhere((np.asarray(sheet) == [255, 0, 0]).all(axis=2))
    height, width = red.max(axis=0) - red.min(axis=0) + 1
    assert (width, height) == (224, 112)


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp", "größe a.png"])
def test_saving(photograph: Make, tmp_path: Path, name: str) -> None:
    save(photograph(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with Image.open(tmp_path / name) as found:
        assert found.size == (40, 30)


@pytest.mark.parametrize("name", ["a", "a.xyz", "a.txt", "png", ""])
def test_endings_that_are_no_pictures(photograph: Make, tmp_path: Path, name: str) -> None:
    with pytest.raises(VlrtError, match="has no ending of a picture"):
        save(photograph(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(photograph: Make, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("x")
    for target, message in (
        (tmp_path / "absent" / "a.png", "does not exist"),
        (tmp_path / "file" / "a.png", "does not exist"),
        (tmp_path / "folder.png", "cannot be written"),
    ):
        with pytest.raises(VlrtError, match=message):
            save(photograph(), target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written(
    photograph: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    (tmp_path / "a.png").write_bytes(b"before")
    write = Image.Image.save

    def failing(self: Image.Image, target: Path, *args: object, **more: object) -> None:
        write(self, target, "PNG")
        raise problem

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises((VlrtError, KeyboardInterrupt)):
        save(photograph(), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
