"""Anything that is a photograph is read; anything else is refused by its cause; pixels are those of the references."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from vlrt import image as pictures
from vlrt.errors import ImageError
from vlrt.image import load, preprocess
from vlrt.manifest import ImageSpec

Make = Callable[..., Image.Image]


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


# --- sources


def test_paths_bytes_pillow_images_and_arrays_give_the_same_picture(photograph: Make, tmp_path: Path) -> None:
    picture = photograph()
    path = tmp_path / "a.png"
    picture.save(path)
    data = path.read_bytes()
    array = np.asarray(picture)
    for source in (path, str(path), data, bytearray(data), memoryview(data), picture, array, array / 255.0):
        assert np.array_equal(np.asarray(load(source)), array)


@pytest.mark.parametrize(
    "name", ["a b.jpg", "größe 写真.jpg", "a\nb.jpg", "'quoted\".jpg", "-x.jpg", os.fsdecode(b"\xff.jpg")]
)
def test_any_file_name(photograph: Make, tmp_path: Path, name: str) -> None:
    photograph().save(tmp_path / name, "JPEG")
    assert load(tmp_path / name).size == (40, 30)
    with pytest.raises(ImageError) as caught:
        load(tmp_path / "gone" / name)
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((5, 4), np.uint8), ((5, 4, 1), np.uint8), ((5, 4, 3), np.uint8), ((5, 4, 4), np.uint8)]
    + [((5, 4, 3), kind) for kind in (np.float16, np.float32, np.float64)],
)
def test_arrays(shape: tuple[int, ...], kind: type) -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 256, shape).astype(np.uint8)
    array = values if kind is np.uint8 else (values / 255.0).astype(kind)
    found = np.asarray(load(array))
    assert found.shape == (5, 4, 3)
    tolerance = 0 if kind is not np.float16 else 1
    expected = values if len(shape) == 3 else values[..., None]
    assert np.abs(found.astype(int) - expected[..., :3].astype(int)).max() <= tolerance


def test_arrays_need_not_be_contiguous(photograph: Make) -> None:
    array = np.asarray(photograph())
    assert np.array_equal(np.asarray(load(array[::-1, ::2])), array[::-1, ::2])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), r"shape \[2, 3, 4, 3\]"),
        (np.zeros((3, 20, 20), np.uint8), r"shape \[3, 20, 20\] is not an image"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]"),
        (np.zeros(4, np.uint8), r"shape \[4\]"),
        (np.array(3, np.uint8), r"shape \[\]"),
        (np.zeros((4, 4, 3), np.int64), "dtype `int64`"),
        (np.zeros((4, 4, 3), bool), "dtype `bool`"),
        (np.full((4, 4, 3), "x"), "dtype"),
        (np.full((4, 4, 3), None), "dtype `object`"),
        (np.full((4, 4, 3), 255.0), "must lie in 0 to 1"),
        (np.full((4, 4, 3), -0.1), "must lie in 0 to 1"),
        (np.full((4, 4, 3), np.nan), "must lie in 0 to 1"),
    ],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load(array)


@pytest.mark.parametrize("source", [None, 3, ["a.jpg"], {"image": 1}, object()])
def test_things_that_are_no_images(source: Any) -> None:
    with pytest.raises(ImageError, match="is not an image"):
        load(source)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "half.svg").write_text("<svg/>")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, message in (
        ("empty.jpg", r"empty\.jpg` is empty"),
        ("text.jpg", r"text\.jpg` is not an image we can read"),
        ("half.svg", r"half\.svg` is not an image we can read"),
        ("pipe.jpg", r"pipe\.jpg` is a pipe or a device"),
        ("gone.jpg", r"gone\.jpg` does not exist"),
        ("text.jpg/below.jpg", r"below\.jpg` cannot be read: Not a directory"),
        ("", r"is a folder, expected an image"),
        ("x" * 300, r"cannot be read: File name too long"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(ImageError, match=message):
            load(tmp_path / name)
    with pytest.raises(ImageError, match="bytes are empty"):
        load(b"")


def test_a_file_that_may_not_be_read(photograph: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom no permission stops, so the system's answer is given by hand."""
    path = tmp_path / "a.jpg"
    photograph().save(path)

    def forbid(*args: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pictures, "open", forbid, raising=False)
    with pytest.raises(ImageError, match=r"a\.jpg` cannot be read: Permission denied"):
        load(path)


# --- kinds of pictures


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_truncated_files_are_refused(photograph: Make, kind: str, share: float) -> None:
    data = encoded(photograph(200, 150), kind)
    with pytest.raises(ImageError, match=r"`bytes` is (damaged|not an image)"):
        load(data[: int(len(data) * share)])


def test_a_pillow_image_that_turns_out_truncated(photograph: Make) -> None:
    data = encoded(photograph(200, 150), "JPEG")
    with pytest.raises(ImageError, match="the Pillow image cannot be read"):
        load(Image.open(io.BytesIO(data[: len(data) // 2])))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_formats(photograph: Make, kind: str) -> None:
    data = encoded(photograph(), kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(load(data)), expected)


def test_progressive_jpeg(photograph: Make) -> None:
    plain, progressive = (encoded(photograph(), "JPEG", progressive=flag, quality=90) for flag in (False, True))
    assert np.array_equal(np.asarray(load(plain)), np.asarray(load(progressive)))


def test_one_pixel_and_extreme_proportions(photograph: Make) -> None:
    spec = ImageSpec((12, 10), (0, 0, 0), (1, 1, 1))
    for size in ((1, 1), (4000, 1), (1, 4000), (3, 2000)):
        picture = load(encoded(photograph(*size), "PNG"))
        assert picture.size == size
        assert preprocess([picture], spec).shape == (1, 3, 12, 10)
    single = load(encoded(Image.new("RGB", (1, 1), (10, 20, 30)), "PNG"))
    assert np.array_equal(preprocess([single], spec)[0].reshape(3, -1).T, np.tile([10.0, 20.0, 30.0], (120, 1)))


def test_a_picture_too_narrow_for_its_shortest_edge() -> None:
    spec = ImageSpec((224, 224), (0, 0, 0), (1, 1, 1), resize="shortest_edge", shortest_edge=224)
    with pytest.raises(ImageError, match="1x60000 pixels is too narrow"):
        preprocess([Image.new("RGB", (1, 60_000))], spec)


def test_cmyk_also_as_adobe_writes_it_inverted() -> None:
    """Pillow undoes the inversion by the file's Adobe marker."""
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data
    red = np.asarray(load(data)).astype(int)
    assert np.abs(red - [255, 0, 0]).max() < 8


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 10), (77, 77, 77)),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3)),
        ("RGBa", (0, 0, 0, 0), (0, 0, 0)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I", 65535, (255, 255, 255)),
        ("I;16", 32896, (128, 128, 128)),
        ("I;16B", 257, (1, 1, 1)),
        ("F", 0.5, (128, 128, 128)),
    ],
)
def test_modes(mode: str, value: Any, expected: tuple[int, int, int]) -> None:
    found = np.asarray(load(Image.new(mode, (6, 4), value)))
    assert np.array_equal(found, np.broadcast_to(np.uint8(expected), (4, 6, 3)))


def test_sixteen_bit_greys_are_scaled_not_clipped() -> None:
    ramp = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        found = np.asarray(load(encoded(Image.fromarray(ramp), kind)))
        assert np.array_equal(found, np.repeat((ramp // 257).astype(np.uint8)[..., None], 3, axis=2))


def test_floating_greys_beyond_one_are_scaled_to_their_range() -> None:
    picture = Image.fromarray(np.array([[-10.0, 0.0, 40.0]], np.float32))
    assert [int(v) for v in np.asarray(load(picture))[0, :, 0]] == [0, 51, 255]
    with pytest.raises(ImageError, match="not finite"):
        load(Image.fromarray(np.array([[0.0, np.nan]], np.float32)))


def test_transparency_is_dropped_as_the_references_do(photograph: Make) -> None:
    picture = photograph()
    alpha = picture.copy()
    alpha.putalpha(40)
    assert np.array_equal(np.asarray(load(encoded(alpha, "PNG"))), np.asarray(picture))
    palette = picture.quantize(16)
    data = encoded(palette, "PNG", transparency=bytes(range(16)))
    assert "transparency" in Image.open(io.BytesIO(data)).info
    assert np.array_equal(np.asarray(load(data)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(photograph: Make, orientation: int, kind: str) -> None:
    """A picture stored turned or mirrored comes out upright, whichever of the eight ways it was stored."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }[orientation]
    stored = photograph(40, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = stored if undo is None else stored.transpose(undo)
    options = {"JPEG": {"quality": 98, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    found = load(encoded(stored, kind, exif=exif, **options))
    assert found.size == ((40, 30) if orientation < 5 else (30, 40))
    gap = np.abs(np.asarray(found).astype(int) - np.asarray(upright).astype(int)).max()
    assert gap <= (8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (12, 9), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.array_equal(np.asarray(load(data)), np.asarray(frames[0]))


def test_loading_leaves_the_callers_picture_alone() -> None:
    picture = Image.new("LA", (3, 3), (5, 6))
    picture.info["kept"] = 1
    load(picture)
    assert (picture.mode, picture.info) == ("LA", {"kept": 1})


# --- pixels


def test_stretch_is_the_recipe_of_the_captioners_card(photograph: Make) -> None:
    """RGB, stretched to 260x260 with Pillow's bicubic, (x - 127) / 128, channels first; to the bit."""
    spec = ImageSpec((260, 260), (127, 127, 127), (128, 128, 128))
    for seed, size in enumerate([(500, 333), (333, 500), (260, 260), (37, 411), (1024, 768)]):
        picture = photograph(*size, seed=seed)
        stretched = np.asarray(picture.convert("RGB").resize((260, 260), Image.Resampling.BICUBIC))
        expected = ((stretched.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
        found = preprocess([picture], spec)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert np.array_equal(found, expected)


def test_pixels_of_the_captioners_goldens(shared_dir: Path) -> None:
    """The development photographs against what was stored when the captioners were trained."""
    spec = ImageSpec((260, 260), (127, 127, 127), (128, 128, 128))
    goldens = json.loads((shared_dir / "captioner" / "golden.json").read_text("utf-8"))
    assert len(goldens) == 8
    for golden in goldens:
        pixels = preprocess([load(shared_dir / "flickr8k-dev" / "images" / golden["image"])], spec)
        assert pixels.mean() == pytest.approx(golden["pixels"]["mean"], abs=1e-6)
        assert pixels.std(ddof=1) == pytest.approx(golden["pixels"]["std"], abs=1e-6)
        assert np.array_equal(pixels.ravel()[:4], np.float32(golden["pixels"]["first"]))


@pytest.mark.parametrize("size", [(37, 91), (91, 37), (224, 224), (225, 224), (333, 500), (640, 427), (30, 31)])
def test_shortest_edge_is_that_of_transformers(photograph: Make, size: tuple[int, int]) -> None:
    """To the bit, against the slow image processor of CLIP."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    spec = ImageSpec(
        (32, 32),
        tuple(processor.image_mean),
        tuple(processor.image_std),
        scale=1 / 255,
        resize="shortest_edge",
        shortest_edge=32,
    )
    picture = photograph(*size, seed=size[0])
    expected = processor(picture, return_tensors="np")["pixel_values"]
    assert np.array_equal(preprocess([picture], spec), expected)


def test_a_batch_is_its_photographs_one_by_one(photograph: Make) -> None:
    spec = ImageSpec((16, 20), (1, 2, 3), (4, 5, 6), scale=0.5)
    several = [photograph(30 + seed, 50 - seed, seed=seed) for seed in range(3)]
    together = preprocess(several, spec)
    assert together.shape == (3, 3, 16, 20)
    for row, picture in zip(together, several):
        assert np.array_equal(row, preprocess([picture], spec)[0])


def test_orientation_is_applied_before_the_resize(photograph: Make) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photograph(40, 30), "PNG", exif=exif)
    spec = ImageSpec((16, 16), (0, 0, 0), (1, 1, 1))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(preprocess([load(data)], spec), preprocess([upright], spec))
