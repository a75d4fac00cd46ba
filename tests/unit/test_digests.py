"""Digests that are remembered: computed once, and again after every change that a file system shows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vlrt import digests
from vlrt.errors import BundleError


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content was read, with a cache of its own and changes that settle at once."""
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_LARGE", 4)
    monkeypatch.setattr(digests, "_SETTLED_NS", -1)
    names: list[str] = []
    real = digests.sha256

    def counting(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(digests, "sha256", counting)
    return names


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"weights")
    return path


def test_an_unchanged_file_is_read_once(file: Path, hashed: list[str]) -> None:
    first = digests.remembered_sha256(file)
    assert [digests.remembered_sha256(file) for _ in range(3)] == [first] * 3
    assert first == hashlib.sha256(b"weights").hexdigest()
    assert hashed == ["weights.bin"]


def _rewrite(path: Path) -> None:
    path.write_bytes(b"WEIGHTS")


def _rewrite_and_set_the_time_back(path: Path) -> None:
    before = os.stat(path)
    path.write_bytes(b"WEIGHTS")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace_by_another(path: Path) -> None:
    before = os.stat(path)
    other = path.with_name("other")
    other.write_bytes(b"WEIGHTS")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


@pytest.mark.parametrize("change", [_rewrite, _rewrite_and_set_the_time_back, _replace_by_another])
def test_a_changed_file_of_the_same_size_is_read_again(
    file: Path, hashed: list[str], change: Callable[[Path], None]
) -> None:
    first = digests.remembered_sha256(file)
    change(file)
    assert digests.remembered_sha256(file) != first
    assert hashed == ["weights.bin"] * 2


def test_a_change_of_this_moment_is_not_trusted_yet(
    file: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SETTLED_NS", 3_600_000_000_000)
    assert digests.remembered_sha256(file) == digests.remembered_sha256(file)
    assert hashed == ["weights.bin"] * 2


@pytest.mark.parametrize("content", ["", "[", "{}", '[[1, 2], "0"]', "[3]", "7"])
def test_a_damaged_note_is_made_again(file: Path, hashed: list[str], tmp_path: Path, content: str) -> None:
    first = digests.remembered_sha256(file)
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    note.write_text(content)
    assert [digests.remembered_sha256(file) for _ in range(2)] == [first] * 2
    assert hashed == ["weights.bin"] * 2


def test_a_link_is_known_by_what_it_points_to(file: Path, hashed: list[str], tmp_path: Path) -> None:
    link = tmp_path / "link.bin"
    link.symlink_to(file)
    first = digests.remembered_sha256(link)
    _rewrite(file)
    assert digests.remembered_sha256(link) != first


def test_a_cache_that_cannot_be_written_is_no_obstacle(file: Path, hashed: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert digests.remembered_sha256(file) == digests.remembered_sha256(file)
    assert hashed == ["weights.bin"] * 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"`absent\.bin` cannot be read"):
        digests.remembered_sha256(tmp_path / "absent.bin")
