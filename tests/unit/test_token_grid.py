"""Files of codes: what is written is read, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlrt.errors import UsageError, VlrtError
from vlrt.token_grid import TokenGrid, read_grid, write_grid

CODES = np.arange(6, dtype=np.int64).reshape(2, 3)


@pytest.mark.parametrize("name", ["codes.json", "codes.npz"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    write_grid(tmp_path / name, TokenGrid(CODES, 512, 4, "vq-vae"))
    found = read_grid(tmp_path / name)
    np.testing.assert_array_equal(found.codes, CODES)
    assert found.codes.dtype == np.int64
    assert (found.codebook, found.factor, found.model) == (512, 4, "vq-vae")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_rows_of_numbers_alone_are_a_grid(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[[1, 2], [3, 4]]", "utf-8")
    np.savez(tmp_path / "b.npz", tokens=np.array([[[1, 2], [3, 4]]], np.int32))
    for name in ("a.json", "b.npz"):
        found = read_grid(tmp_path / name)
        np.testing.assert_array_equal(found.codes, [[1, 2], [3, 4]])
        assert (found.codebook, found.factor, found.model) == (0, 0, "")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"tokens": []},
        {"tokens": [[]]},
        {"tokens": [[1, 2], [3]]},
        {"tokens": [[1.5, 2.0]]},
        {"tokens": [[True, False]]},
        {"tokens": [["1"]]},
        {"tokens": [[10**30]]},
        {"tokens": [1, 2, 3]},
        {"tokens": [[[1]]]},
        {"tokens": "0123"},
        {"tokens": [[1]], "codebook": -1},
        {"tokens": [[1]], "factor": "4"},
        7,
        None,
    ],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "codes.json").write_text(json.dumps(value), "utf-8")
    with pytest.raises(VlrtError, match=r"`codes\.json` holds no grid of codes"):
        read_grid(tmp_path / "codes.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"PK\x03\x04"])
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "codes.json").write_bytes(content)
    with pytest.raises(VlrtError, match="is not JSON"):
        read_grid(tmp_path / "codes.json")


def test_damaged_and_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", tokens=np.array([[{}]], dtype=object))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez(tmp_path / "other.npz", codes=CODES)
    np.savez(tmp_path / "real.npz", tokens=CODES.astype(np.float32))
    for name, words in (("objects", "damaged"), ("cut", "damaged"), ("other", "no grid"), ("real", "no grid")):
        with pytest.raises(VlrtError, match=words):
            read_grid(tmp_path / f"{name}.npz")


def test_files_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", tokens=CODES, more=np.zeros(65 << 20, np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 20
    with open(tmp_path / "bomb.json", "wb") as stream:
        stream.truncate(65 << 20)
    for name in ("bomb.npz", "bomb.json"):
        with pytest.raises(VlrtError, match="too large for a file of codes"):
            read_grid(tmp_path / name)


def test_missing_files_and_other_endings(tmp_path: Path) -> None:
    for name in ("none.json", "none.npz"):
        with pytest.raises(VlrtError, match="does not exist"):
            read_grid(tmp_path / name)
    with pytest.raises(UsageError, match="no ending of a file of codes"):
        write_grid(tmp_path / "codes.txt", TokenGrid(CODES))
    with pytest.raises(UsageError, match=r"the folder .* does not exist"):
        write_grid(tmp_path / "nowhere" / "codes.json", TokenGrid(CODES))
