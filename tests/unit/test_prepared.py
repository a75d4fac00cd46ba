"""Graphs prepared for our own kernels when they are first opened: kept, found again, the same with a profile."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vlrt import device_graph
from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions, Session, custom_kernels, graph_cache, open_session, prepared
from vlrt.engines.prepared import open_file
from vlrt.errors import VlrtNote, VlrtWarning

ROLE = "caption_step"

needs_kernels = pytest.mark.skipif(custom_kernels.level() < 1, reason="the processor has no AVX-512")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and no graph is too small to be rewritten."""
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLRT_KERNELS", "always")
    return tmp_path / "cache"


@pytest.fixture
def bundle(tiny: ModuleType, tmp_path: Path) -> Bundle:
    tiny.write_bundle(tmp_path / "tiny")
    return Bundle.open(tmp_path / "tiny")


def kept(cache: Path) -> set[str]:
    return {path.name for path in cache.glob("graphs/*/*/*")}


def results(session: Session) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    given = {}
    for tensor in session.spec.inputs:
        shape = [size if isinstance(size, int) else 2 for size in tensor.shape]
        values = random.standard_normal(shape) if tensor.dtype == "float32" else random.integers(0, 2, shape)
        given[tensor.name] = values.astype(tensor.dtype)
    return session.run(**given)


def assert_equal(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert ours.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(ours[name], values, rtol=0, atol=1e-5)


@needs_kernels
def test_a_graph_is_rewritten_once(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLRT_KERNELS", "0")
    expected = results(open_session(bundle, ROLE, EngineOptions()))
    assert kept(cache) == set()
    monkeypatch.setenv("VLRT_KERNELS", "always")
    assert_equal(results(open_session(bundle, ROLE, EngineOptions())), expected)
    assert kept(cache) == {"rewritten.onnx", "rewritten.bin", "record.json"}
    monkeypatch.setattr(device_graph, "rewrite", None)
    assert_equal(results(open_session(bundle, ROLE, EngineOptions())), expected)


@needs_kernels
def test_what_is_kept_for_our_kernels_is_no_concern_of_who_turns_them_off(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_session(bundle, ROLE, EngineOptions())
    monkeypatch.setenv("VLRT_KERNELS", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_session(bundle, ROLE, EngineOptions())


@needs_kernels
def test_profiles_run_the_same_graph(bundle: Bundle, cache: Path, tmp_path: Path) -> None:
    session = open_session(bundle, ROLE, EngineOptions(profile=tmp_path))
    results(session)
    events = json.loads(session.end_profile().read_text("utf-8"))
    operators = {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}
    assert "Linear" in operators
    assert not {"MatMul", "Gemm"} <= operators
    assert len(list(tmp_path.glob("*.json"))) == 1, "making the graph is not profiled"


@needs_kernels
def test_files_are_prepared_too_and_leave_nothing(bundle: Bundle, cache: Path, tmp_path: Path) -> None:
    session = open_file(*bundle.graph(ROLE), EngineOptions(profile=tmp_path))
    assert list(cache.iterdir()) == []
    assert_equal(results(session), results(open_session(bundle, ROLE, EngineOptions())))
    assert '"Linear"' in session.end_profile().read_text("utf-8")


@needs_kernels
def test_a_graph_that_is_not_understood_runs_as_onnxruntime_made_it(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("groups are not used by ONNX")

    expected = results(open_session(bundle, ROLE, EngineOptions()))
    (entry,) = cache.glob("graphs/*/*")
    for path in entry.iterdir():
        path.unlink()
    entry.rmdir()
    monkeypatch.setattr(device_graph, "rewrite", refuse)
    with pytest.warns(VlrtWarning, match=r"`caption_step\.onnx` cannot be rewritten .* groups are not used by ONNX"):
        assert_equal(results(open_session(bundle, ROLE, EngineOptions())), expected)
    assert "graph.onnx" in kept(cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(results(open_session(bundle, ROLE, EngineOptions())), expected)


@needs_kernels
def test_a_rewritten_graph_that_onnxruntime_refuses_is_not_run(
    bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(open_session(bundle, ROLE, EngineOptions()))

    def without_operators(*_: object) -> None:
        """As a library of kernels that lacks some."""

    monkeypatch.setattr(custom_kernels, "register", without_operators)
    for opened in (Bundle.open(bundle.path), bundle):
        with pytest.warns(VlrtWarning, match=r"`caption_step\.onnx` cannot be prepared .* cannot be loaded"):
            assert_equal(results(open_session(opened, ROLE, EngineOptions())), expected)


@needs_kernels
def test_a_full_disk_is_no_obstacle(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    expected = results(open_session(bundle, "caption_memory", EngineOptions()))
    before = kept(cache)
    monkeypatch.setattr(device_graph, "rewrite", fail)
    for session in (open_session, lambda bundle, role, options: open_file(*bundle.graph(role), options)):
        with pytest.warns(VlrtWarning, match=r"`caption_step\.onnx` cannot be prepared .* No space left"):
            results(session(bundle, ROLE, EngineOptions()))
    assert kept(cache) == before, "nothing half-made stays"
    assert_equal(results(open_session(bundle, "caption_memory", EngineOptions())), expected)


@needs_kernels
def test_small_graphs_are_left_to_onnxruntime(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLRT_KERNELS")
    open_session(bundle, ROLE, EngineOptions())
    assert kept(cache) == set()
    monkeypatch.setattr(graph_cache, "_MUCH", 100)
    open_session(bundle, ROLE, EngineOptions())
    assert "rewritten.onnx" in kept(cache)


@needs_kernels
def test_a_cache_that_cannot_be_written_leaves_graphs_to_onnxruntime(bundle: Bundle, cache: Path) -> None:
    cache.write_text("a file where the folder should be", "utf-8")
    results(open_session(bundle, ROLE, EngineOptions()))
    results(open_file(*bundle.graph(ROLE), EngineOptions()))


@needs_kernels
def test_long_preparations_are_told_once(bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_TAKES_LONG", 1)
    with pytest.warns(VlrtNote, match="`caption_step.onnx` .* is prepared for this processor, once"):
        open_session(bundle, ROLE, EngineOptions(threads=1))
    open_session(bundle, ROLE, EngineOptions(threads=1))  # warnings are errors here
