"""Images made to harm: huge declared sizes, formats that start programs, and noise."""

from __future__ import annotations

import io
import resource
import shutil
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlrt.errors import ImageError
from vlrt.image import MOST_PIXELS, load


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that declares any size; its rows are there as far as a kilobyte of zeros goes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + screen + frame + b"\x3b"


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 200), (279, 4, 1)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + b"\0" * 200


@pytest.mark.parametrize("make", [png, gif, bmp, tiff])
def test_decompression_bombs_are_refused_before_they_are_decoded(make: Callable[[int, int], bytes]) -> None:
    side = 60_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"60000x60000 pixels|more than 178,956,970 pixels"):
        load(make(side, side))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < side * side // 8, "it was decoded"


def test_a_size_just_beyond_what_is_read() -> None:
    assert MOST_PIXELS < 13_378 * 13_378
    with pytest.raises(ImageError, match="pixels"):
        load(png(13_378, 13_378))


def test_a_bomb_raises_no_warning_of_pillow() -> None:
    """Half of the limit: Pillow would warn; we read it, and find that its rows are not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="damaged"):
            load(png(12_000, 10_000))


def test_formats_that_start_programs_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands EPS to Ghostscript."""

    def started(*args: object, **more: object) -> None:
        raise AssertionError(f"a program was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(subprocess, "check_call", started)
    monkeypatch.setattr(shutil, "which", lambda *args, **more: "/usr/bin/gs")
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="is not an image we can read"):
        load(path)


@pytest.mark.parametrize("kind", ["PDF", "ICO", "TGA", "PCX", "DDS", "SGI"])
def test_rare_formats_are_refused_by_name(kind: str, photograph: Callable[..., Image.Image]) -> None:
    stream = io.BytesIO()
    photograph().save(stream, kind)
    with pytest.raises(ImageError, match="`bytes` is not an image we can read"):
        load(stream.getvalue())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF", "JPEG2000"])
def test_noise_in_a_file_is_an_image_or_an_image_error(kind: str, photograph: Callable[..., Image.Image]) -> None:
    """Nothing else may come out of a decoder: a folder run goes on after an `ImageError` only."""
    stream = io.BytesIO()
    photograph(24, 18).save(stream, kind)
    whole = stream.getvalue()
    random = np.random.default_rng(7)
    refused = 0
    for trial in range(60):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 1 + trial % 8):
            data[place] = random.integers(0, 256)
        if trial % 3 == 0:
            data = data[: random.integers(1, len(data))]
        try:
            assert load(bytes(data)).mode == "RGB"
        except ImageError as error:
            refused += 1
            assert "\n" not in error.what  # noqa: PT017
    assert refused


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\xff\0\0\0\0",
        b"x",
    ],
)
def test_broken_metadata_does_not_spoil_a_photograph(exif: bytes, photograph: Callable[..., Image.Image]) -> None:
    stream = io.BytesIO()
    photograph(20, 10).save(stream, "JPEG", exif=exif)
    assert load(stream.getvalue()).size == (20, 10)


def test_what_pillow_logs_stays_off_the_terminal(tmp_path: Path) -> None:
    """Its loggers have no handler, so that Python would print the line as a last resort."""
    path = tmp_path / "a.tiff"
    data = bytearray(tiff(4, 4))
    data[8 + 2 + 2 * 12 : 8 + 2 + 3 * 12] = struct.pack("<HHII", 277, 3, 1, 8000)  # samples per pixel
    path.write_bytes(data)
    code = f"""
from vlrt.errors import ImageError
from vlrt.image import load
try:
    load({str(path)!r})
except ImageError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("refused\n", "")
