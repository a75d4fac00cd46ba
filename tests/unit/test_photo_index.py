"""The index of a folder: what is known is not computed again, what changed is, and foreign files are left alone."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.errors import UsageError, VlrtError
from vlrt.photo_index import PhotoIndex, default_store
from vlrt.tasks.match import Matcher
from vlrt.tasks.search import Searcher

Make = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def bundle(tiny_bundle_folder: Path) -> Bundle:
    return Bundle.open(tiny_bundle_folder)


@pytest.fixture
def searcher(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Searcher:
    """A searcher that notes which photographs it embeds, in `embedded`."""
    made = Searcher(bundle)
    embed = made.encoder.images
    made.embedded = []  # type: ignore[attr-defined]

    def noting(sources: Any) -> Any:
        vectors = embed(sources)
        made.embedded += [path.name for path in sources]  # type: ignore[attr-defined]
        return vectors

    monkeypatch.setattr(made.encoder, "images", noting)
    return made


@pytest.fixture
def folder(photograph: Make, tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for seed in range(5):
        photograph(30 + seed, 40, seed=seed).save(tmp_path / "photos" / f"{seed}.png")
    return tmp_path / "photos"


def paths(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_second_run_computes_nothing(searcher: Searcher, folder: Path, tmp_path: Path) -> None:
    told: list[int] = []
    first, failures = searcher.index(paths(folder), tmp_path / "i.npz", told.append)
    assert searcher.embedded == [f"{seed}.png" for seed in range(5)]
    assert failures == []
    assert told == [0, 5]
    searcher.embedded.clear()
    second, _ = searcher.index(paths(folder), tmp_path / "i.npz", told.append)
    assert searcher.embedded == []
    assert told[2:] == [5]
    assert len(first) == len(second) == 5
    for found, expected in zip(second.vectors(paths(folder)), first.vectors(paths(folder))):
        assert np.array_equal(found, expected)


def test_what_changed_is_computed_again(searcher: Searcher, folder: Path, photograph: Make, tmp_path: Path) -> None:
    searcher.index(paths(folder), tmp_path / "i.npz")
    searcher.embedded.clear()
    photograph(90, 90, seed=9).save(folder / "2.png")
    photograph(seed=7).save(folder / "new.png")
    os.utime(folder / "4.png", ns=(1, 1))
    searcher.index(paths(folder), tmp_path / "i.npz")
    assert searcher.embedded == ["2.png", "4.png", "new.png"]


def test_results_are_the_closest_first_and_ties_by_name(searcher: Searcher, folder: Path, tmp_path: Path) -> None:
    (folder / "3.png").write_bytes((folder / "1.png").read_bytes())
    index, _ = searcher.index(paths(folder), tmp_path / "i.npz")
    found = searcher("a dog", index, list(reversed(paths(folder))), top=4)
    assert len(found) == 4
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True)
    twins = [hit.path.name for hit in searcher("a dog", index, paths(folder), 5) if hit.path.name in ("1.png", "3.png")]
    assert twins == ["1.png", "3.png"]
    for hit in found:
        match = Matcher(searcher.encoder.bundle)(hit.path, "a dog")[0]
        assert hit.score == pytest.approx(match.score, abs=1e-5)


def test_only_the_photographs_that_were_named_are_found(searcher: Searcher, folder: Path, tmp_path: Path) -> None:
    index, _ = searcher.index(paths(folder), tmp_path / "i.npz")
    assert [hit.path for hit in searcher("a dog", index, paths(folder)[:1])] == paths(folder)[:1]
    assert searcher("a dog", index, []) == []
    with pytest.raises(UsageError, match="`top` is 0"):
        searcher("a dog", index, paths(folder), top=0)


def test_one_bad_photograph_does_not_stop_the_others(searcher: Searcher, folder: Path, tmp_path: Path) -> None:
    (folder / "2.png").write_bytes(b"not an image")
    everything = [*paths(folder), folder / "gone.png"]
    index, failures = searcher.index(everything, tmp_path / "i.npz")
    assert [failure.path.name for failure in failures] == ["2.png", "gone.png"]
    assert "is not an image" in failures[0].error
    assert len(searcher("a dog", index, everything)) == 4


def test_what_vanished_or_broke_is_not_found_by_its_old_embedding(
    searcher: Searcher, folder: Path, tmp_path: Path
) -> None:
    before = paths(folder)
    searcher.index(before, tmp_path / "i.npz")
    (folder / "1.png").unlink()
    (folder / "2.png").write_bytes(b"broken since")
    index, failures = searcher.index(before, tmp_path / "i.npz")
    assert {failure.path.name for failure in failures} == {"1.png", "2.png"}
    assert {hit.path.name for hit in searcher("a dog", index, before)} == {"0.png", "3.png", "4.png"}


def test_an_interrupted_run_keeps_what_it_has(searcher: Searcher, photograph: Make, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(20):
        photograph(12, 12, seed=seed).save(folder / f"{seed:02}.png")

    def interrupt(done: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        searcher.index(paths(folder), tmp_path / "i.npz", interrupt)
    assert len(searcher.embedded) == 16
    searcher.embedded.clear()
    searcher.index(paths(folder), tmp_path / "i.npz")
    assert searcher.embedded == ["16.png", "17.png", "18.png", "19.png"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_index_of_another_model_is_started_afresh(
    searcher: Searcher, bundle: Bundle, tiny_copy: Path, folder: Path, tmp_path: Path
) -> None:
    searcher.index(paths(folder), tmp_path / "i.npz")
    (tiny_copy / "manifest.json").write_text((tiny_copy / "manifest.json").read_text("utf-8") + "\n", "utf-8")
    other = Bundle.open(tiny_copy)
    assert len(PhotoIndex.open(tmp_path / "i.npz", other, 8)) == 0
    assert len(PhotoIndex.open(tmp_path / "i.npz", bundle, 9)) == 0
    assert len(PhotoIndex.open(tmp_path / "i.npz", bundle, 8)) == 5


class Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_foreign_files_are_neither_run_nor_overwritten(
    searcher: Searcher, bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    trace, store = tmp_path / "trace", tmp_path / "i.npz"
    np.savez(tmp_path / "objects.npz", manifest=np.array([Bomb(trace)]), vectors=np.zeros((1, 8), np.float32))
    np.savez(tmp_path / "else.npz", a=np.zeros(3))
    np.savez(tmp_path / "list.npz", manifest=np.array("[1]"), vectors=np.zeros((1, 8), np.float32))
    np.save(tmp_path / "array.npy", np.zeros(3))
    searcher.index(paths(folder), tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    contents = [
        b"",
        b"my notes\n",
        pickle.dumps(Bomb(trace)),
        whole[:-40],
        whole[: len(whole) // 2],
        b"PK\x03\x04" + b"x" * 50,
    ]
    contents += [(tmp_path / name).read_bytes() for name in ("objects.npz", "else.npz", "list.npz", "array.npy")]
    for content in contents:
        store.write_bytes(content)
        with pytest.raises(VlrtError, match=r"cannot be read as an index of photographs") as caught:
            searcher.index(paths(folder), store)
        assert "remove it" in caught.value.hint
        assert store.read_bytes() == content
    assert not trace.exists()
    store.unlink()
    store.mkdir()
    with pytest.raises(VlrtError, match="Is a directory"):
        PhotoIndex.open(store, bundle, 8)


def test_a_store_that_cannot_be_written(searcher: Searcher, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(VlrtError, match=r"cannot be (written|read)") as caught:
        searcher.index(paths(folder), tmp_path / "file" / "i.npz")
    assert caught.value.hint


def test_a_full_disk_leaves_the_earlier_index(
    searcher: Searcher, folder: Path, photograph: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "i.npz"
    searcher.index(paths(folder), store)
    before = store.read_bytes()

    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    photograph(seed=8).save(folder / "new.png")
    monkeypatch.setattr("vlrt.whole_file.os.replace", full)
    with pytest.raises(VlrtError, match="cannot be written: No space left on device"):
        searcher.index(paths(folder), store)
    assert store.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_where_an_index_is_kept(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path / "cache"))
    a, b = default_store(tmp_path / "a", bundle), default_store(tmp_path / "b", bundle)
    assert a.parent == b.parent == tmp_path / "cache" / "search"
    assert a != b
    other = Bundle(bundle.path, replace(bundle.manifest, name="other"))
    assert default_store(tmp_path / "a", other) != a


def test_matching(bundle: Bundle, folder: Path) -> None:
    matcher = Matcher(bundle)
    found = matcher(folder / "0.png", ["a dog", "the cat", "a red car"])
    assert [match.text for match in found] == ["a dog", "the cat", "a red car"]
    assert sum(match.probability for match in found) == pytest.approx(1)
    logits = np.array([10.0 * match.score for match in found])
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [match.probability for match in found] == pytest.approx(expected, abs=1e-6)
    assert all(-1 <= match.score <= 1 for match in found)
    assert matcher(folder / "0.png", "a dog")[0].probability == 1
    with pytest.raises(UsageError, match="there is no text"):
        matcher(folder / "0.png", [])
