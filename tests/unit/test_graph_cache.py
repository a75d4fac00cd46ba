"""Optimised graphs kept between processes: found, checked, made again, and never in the way."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions, Sessions, graph_cache, open_session
from vlrt.errors import BundleError, VlrtWarning


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, that keeps small graphs too."""
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(graph_cache, "_MANY_NODES", 1)
    return tmp_path / "cache" / "graphs"


@pytest.fixture
def bundle(tiny: ModuleType, tmp_path: Path) -> Bundle:
    tiny.write_bundle(tmp_path / "tiny")
    return Bundle.open(tmp_path / "tiny")


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*")) if cache.is_dir() else []


def regions(bundle: Bundle) -> Any:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    return open_session(bundle, "image_encoder", EngineOptions()).run(pixels=pixels)["regions"]


def test_the_second_load_reads_what_the_first_optimised(bundle: Bundle, cache: Path) -> None:
    first = regions(bundle)
    (entry,) = entries(cache)
    assert {path.name for path in entry.iterdir()} >= {"graph.onnx", "record.json"}
    # The bundle's own file is not read on a hit: nothing that became of it could run.
    Path(bundle.path / "image_encoder.onnx").write_bytes(b"\0" * bundle.manifest.files["image_encoder.onnx"].bytes)
    assert np.array_equal(regions(Bundle.open(bundle.path)), first)
    assert entries(cache) == [entry]
    assert [str(e.what) for e in Bundle.open(bundle.path).problems()], "verifying reads it"


@pytest.mark.parametrize("damage", ["flip", "truncate", "record", "remove"])
def test_a_damaged_entry_is_made_again(bundle: Bundle, cache: Path, damage: str) -> None:
    first = regions(bundle)
    (entry,) = entries(cache)
    graph = entry / "graph.onnx"
    content = bytearray(graph.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        graph.write_bytes(content)
    elif damage == "truncate":
        graph.write_bytes(content[:100])
    elif damage == "record":
        (entry / "record.json").write_text("[", "utf-8")
    else:
        graph.unlink()
    with pytest.warns(VlrtWarning, match="`image_encoder.onnx` is damaged; it is made again"):
        assert np.array_equal(regions(bundle), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(regions(bundle), first)


def test_another_processor_makes_its_own(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = regions(bundle)
    monkeypatch.setattr(graph_cache, "processor", lambda: "another")
    with pytest.warns(VlrtWarning, match="from another processor, onnxruntime or vlrt; it is made again"):
        assert np.allclose(regions(bundle), first)
    assert len(entries(cache)) == 2


def test_an_altered_graph_is_not_cached(bundle: Bundle, cache: Path) -> None:
    path = bundle.path / "image_encoder.onnx"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="was altered"):
        regions(bundle)
    assert entries(cache) == []


def test_another_process_may_be_first(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = regions(bundle)
    (entry,) = entries(cache)
    monkeypatch.setattr(graph_cache.GraphCache, "find", lambda self: None)  # as one that looked before it was there
    assert np.array_equal(regions(bundle), first)
    assert entries(cache) == [entry]
    assert not list(cache.glob("*/.*")), "nothing half-made stays"


def test_a_cache_that_cannot_be_written_is_no_obstacle(bundle: Bundle, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be", "utf-8")
    assert regions(bundle).shape == (2, 16, 6)


def test_small_graphs_are_left_alone(
    tiny: ModuleType, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_cache, "_MANY_NODES", 1000)
    tiny.write_bundle(tmp_path / "small")
    Sessions(Bundle.open(tmp_path / "small")).get("caption_step")
    assert entries(cache) == []


def test_old_entries_make_room(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for role in ("image_encoder", "caption_step"):
        open_session(bundle, role, EngineOptions())
    older = next(e for e in entries(cache) if any(b"regions" in graph.read_bytes() for graph in e.glob("*.onnx")))
    os.utime(older, (1, 1))
    monkeypatch.setattr(graph_cache, "_MOST_BYTES", 1)
    open_session(bundle, "text_encoder", EngineOptions())
    assert older not in entries(cache)
    assert len(entries(cache)) == 1
    shutil.rmtree(cache)


@pytest.mark.parametrize(
    ("features", "exact"),
    [
        ("Linux\nx86_64\nflags : sse2 avx2", False),
        ("Linux\nx86_64\nflags : sse2 avx2 avx512_vnni", True),
        ("Linux\nx86_64\nflags : sse2 avx2 avx_vnni", True),
        ("Windows\nAMD64\nIntel64 Family 6", False),
        ("Linux\naarch64\nFeatures : asimd", True),
    ],
)
def test_processors_whose_products_of_bytes_overflow(features: str, exact: bool) -> None:
    assert graph_cache.multiplies_bytes(features) == exact
