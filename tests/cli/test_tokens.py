"""`vlrt run tokenize`, `detokenize` and `reconstruct`: pictures as codes, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlrt.image import load
from vlrt.token_grid import read_grid

Run = Callable[..., Any]


@pytest.fixture
def photo(photograph: Callable[..., Image.Image], tmp_path: Path) -> Path:
    photograph(24, 16).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("name", ["codes.json", "codes.npz"])
def test_codes_go_to_a_file_and_back_to_a_picture(command: Run, small_codec: Path, photo: Path, name: str) -> None:
    target, picture = photo.parent / name, photo.parent / "again.png"
    found = command("run", "tokenize", photo, "--model", small_codec, "-o", target)
    assert found.code == 0, found
    assert "4 rows of 6 codes" in found.out
    assert read_grid(target).codes.shape == (4, 6)
    found = command("run", "detokenize", target, "--model", small_codec, "-o", picture)
    assert found.code == 0, found
    assert "24x16 pixels of 24 codes" in found.out
    reconstructed = photo.parent / "reconstructed.png"
    assert command("run", "reconstruct", photo, "--model", small_codec, "--out", reconstructed).code == 0
    np.testing.assert_array_equal(np.asarray(load(picture)), np.asarray(load(reconstructed)))


def test_codes_are_printed_as_rows_and_as_json(command: Run, small_codec: Path, photo: Path) -> None:
    printed = command("run", "tokenize", photo, "--model", small_codec, "--size", "12x8")
    rows = [[int(code) for code in line.split()] for line in printed.out.splitlines()]
    assert np.shape(rows) == (2, 3)
    value = json.loads(command("run", "tokenize", photo, "--model", small_codec, "--size", "12x8", "--json").out)
    assert value == {"image": str(photo), "model": "small-codec", "codebook": 16, "factor": 4, "tokens": rows}


def test_several_photographs_are_json_lines(command: Run, small_codec: Path, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes.jsonl"
    (photographs / "broken.jpg").write_bytes(b"no picture")
    found = command("run", "tokenize", photographs, "--model", small_codec, "--size", "8", "--out", out)
    assert found.code == 1
    assert "broken.jpg" in found.err
    values = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [np.shape(value["tokens"]) for value in values if "tokens" in value] == [(2, 2)] * 3
    command("run", "tokenize", photographs, "--model", small_codec, "-o", tmp_path / "codes.json").failed(
        2, "`codes.json` holds the codes of one photograph, got 4"
    )


def test_a_margin_that_is_cut_is_told(command: Run, small_codec: Path, photograph: Run, tmp_path: Path) -> None:
    photograph(26, 17).save(tmp_path / "odd.png")
    found = command("run", "tokenize", tmp_path / "odd.png", "--model", small_codec, "--json")
    assert found.code == 0
    assert found.err == "warning: a picture of 26x17 pixels was cut to 24x16: codes are 4x4\n"


def test_reconstruction_says_what_was_lost(command: Run, small_codec: Path, photo: Path) -> None:
    out = photo.parent / "beside.png"
    found = command("run", "reconstruct", photo, "--model", small_codec, "--beside", "-o", out)
    assert "mean squared error 0." in found.out
    assert " dB; 4 rows of 6 codes" in found.out
    assert load(out).size == (2 * 24 + 8, 16)
    value = json.loads(command("run", "reconstruct", photo, "--model", small_codec, "--json").out)
    assert set(value) == {"image", "mse", "psnr", "rows", "columns"}
    assert 0 < value["mse"] < 1
    command("run", "reconstruct", photo, small_codec.parent / "none.png", "--model", small_codec, "-o", out).failed(
        2, "got 2"
    )


def test_mistakes_are_one_line(command: Run, small_codec: Path, photo: Path, tiny_bundle_folder: Path) -> None:
    codes = photo.parent / "codes.json"
    picture = photo.parent / "out.png"
    run = ("run", "detokenize", codes, "--model", small_codec, "-o", picture)
    command(*run).failed(1, "does not exist", "vlrt run tokenize")
    codes.write_text("[[0, 16]]", "utf-8")
    command(*run).failed(2, "the code 16 is outside the codebook of 16 codes of `small-codec`")
    codes.write_text('{"tokens": [[0]], "codebook": 512, "model": "vq-vae"}', "utf-8")
    command(*run).failed(2, "made by `vq-vae` with a codebook of 512, `small-codec` has 16")
    codes.write_text('{"tokens": [[0], [1, 2]]}', "utf-8")
    command(*run).failed(1, "holds no grid of codes")
    command("run", "detokenize", codes, "--model", small_codec, "-o", photo.parent / "out.txt").failed(2, "no ending")
    command("run", "tokenize", photo, "--model", small_codec, "--size", "10").failed(2, "no whole codes", "8 or 12")
    command("run", "tokenize", photo, "--model", small_codec, "--size", "wide").failed(2, "`wide` is no size")
    command("run", "tokenize", photo, "--model", tiny_bundle_folder).failed(1, "does not serve `tokenize`")
    command("run", "tokenize", photo).failed(1, "no default model serves `tokenize`")
    assert not picture.exists()


def test_verify_computes_the_codec_s_goldens(command: Run, small_codec: Path) -> None:
    found = command("verify", small_codec)
    assert found.code == 0
    assert "codec.pixels" in found.out
