"""Opening a bundle: what is checked when, and what a user is told."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vlrt import bundle as bundles
from vlrt.bundle import Bundle, sha256
from vlrt.errors import BundleError


def test_a_whole_bundle(tiny_bundle_folder: Path) -> None:
    bundle = Bundle.open(tiny_bundle_folder)
    assert bundle.name == "tiny"
    assert bundle.path == tiny_bundle_folder
    assert list(bundle.problems()) == []
    assert bundle.size == sum(p.stat().st_size for p in tiny_bundle_folder.iterdir() if p.name != "manifest.json")
    spec, path = bundle.graph("caption_step")
    assert path == tiny_bundle_folder / "caption_step.onnx"
    assert {t.name for t in spec.inputs} == {"token", "hidden", "memory"}


def test_a_path_may_be_a_string_or_a_link_to_the_folder(tiny_bundle_folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny_bundle_folder)
    assert Bundle.open(str(link)).name == "tiny"


def test_content_is_hashed_once_when_a_file_is_first_used(
    tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(bundles, "remembered_sha256", counting)
    bundle = Bundle.open(tiny_bundle_folder)
    assert hashed == []
    for _ in range(3):
        bundle.graph("image_encoder")
        bundle.file("tokenizer.json")
    assert hashed == ["image_encoder.onnx", "tokenizer.json"]


def test_threads_may_ask_at_once(tiny_bundle_folder: Path) -> None:
    bundle = Bundle.open(tiny_bundle_folder)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(bundle.file("tokenizer.json"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tiny_bundle_folder / "tokenizer.json"] * 8


def test_unknown_files_roles_and_tasks_are_named(tiny_bundle_folder: Path) -> None:
    bundle = Bundle.open(tiny_bundle_folder)
    with pytest.raises(BundleError, match=r"`other\.json` is not a file of the bundle `tiny`"):
        bundle.file("other.json")
    with pytest.raises(BundleError, match=r"has no graph `unet`, it has `image_encoder`"):
        bundle.graph("unet")
    with pytest.raises(BundleError, match=r"does not serve `paint`, it serves `caption`, `match`"):
        bundle.require("paint")


def test_places_that_hold_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, message in (
        (tmp_path, "is not a bundle: it has no manifest.json"),
        (tmp_path / "absent", "is not a folder"),
        (tmp_path / "file", "is not a folder"),
        (tmp_path / "file" / "below", "is not a folder"),
    ):
        with pytest.raises(BundleError, match=message) as caught:
            Bundle.open(path)
        assert caught.value.hint
    with pytest.raises(BundleError):
        Bundle.open("null\0character")


def test_a_missing_file_is_named(tiny_copy: Path) -> None:
    (tiny_copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"`tokenizer\.json` is missing from the bundle `tiny`"):
        Bundle.open(tiny_copy)


def test_a_truncated_file_is_named_with_both_sizes(tiny_copy: Path) -> None:
    path = tiny_copy / "caption_step.onnx"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=rf"`caption_step\.onnx` has {len(data) - 1:,} bytes, expected {len(data):,}"):
        Bundle.open(tiny_copy)


def test_problems_lists_every_altered_and_every_foreign_file(tiny_copy: Path) -> None:
    bundle = Bundle.open(tiny_copy)
    for name in ("tokenizer.json", "goldens.json"):
        data = bytearray((tiny_copy / name).read_bytes())
        data[10] ^= 1
        (tiny_copy / name).write_bytes(data)
    (tiny_copy / "extra.bin").write_bytes(b"x")
    (tiny_copy / "image_encoder.onnx").unlink()
    found = [problem.what for problem in bundle.problems()]
    assert len(found) == 4
    assert all(any(name in what for what in found) for name in ("tokenizer", "goldens", "extra.bin", "image_encoder"))


def test_a_file_that_vanishes_after_opening(tiny_copy: Path) -> None:
    bundle = Bundle.open(tiny_copy)
    (tiny_copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"`tokenizer\.json` cannot be read"):
        bundle.file("tokenizer.json")
