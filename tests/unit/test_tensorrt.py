"""TensorRT behind its API's own rules: engines built, kept, found, refused, and run with states on the device."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vlrt.bundle import Bundle
from vlrt.cli import main
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines import EngineOptions, Sessions, cuda_driver, open_session
from vlrt.engines import tensorrt as engine
from vlrt.engines.cuda_driver import Gpu
from vlrt.engines.tensorrt_store import EngineStore, Machine, timing_file
from vlrt.errors import BundleError, EngineError, UsageError
from vlrt_export import tensorrt as exporter

HERE = Gpu(0, "NVIDIA Made Up", "9.0", 1 << 34)
MACHINE = Machine(HERE.name, HERE.capability, "10.16.1")
RANGES = "batch=1:1:4,images=1:1:4,rows=1:5:16,length=1:4:16"
WHOLE = exporter.parse_profile(RANGES)
TENSORRT = EngineOptions("tensorrt:0", threads=1)


@pytest.fixture
def bundle(tiny_copy: Path) -> Bundle:
    return Bundle.open(tiny_copy)


@pytest.fixture
def library(
    fake_tensorrt: ModuleType, fake_device: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> ModuleType:
    """A machine with a GPU and TensorRT, and an empty cache."""
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path / "cache"))
    for module in (engine, exporter):
        monkeypatch.setattr(module, "load_library", lambda: fake_tensorrt)
        monkeypatch.setattr(module, "gpu", lambda index: HERE)
    monkeypatch.setattr(engine, "CudaMemory", lambda index: fake_device.FakeMemory())
    fake_tensorrt.built.clear()
    return fake_tensorrt


def build(bundle: Bundle, *profiles: exporter.Profile, lines: list[str] | None = None) -> list[Path]:
    told = lines if lines is not None else []
    return exporter.build_engines(bundle, exporter.Wish(profiles or (WHOLE,), progress=told.append))


# --- the same results


def test_run_and_bind_give_what_onnxruntime_gives(bundle: Bundle, library: ModuleType) -> None:
    build(bundle)
    for role, spec in bundle.manifest.graphs.items():
        there, here = open_session(bundle, role, TENSORRT), open_session(bundle, role, EngineOptions(threads=1))
        for size, seed in ((1, 0), (2, 1), (2, 2)):
            draw = np.random.default_rng(seed)
            sizes = {"regions": 16, "length": 5}
            shapes = {t.name: [sizes.get(a, size) if isinstance(a, str) else a for a in t.shape] for t in spec.inputs}
            given = {
                t.name: draw.integers(1, 9, shapes[t.name]) if t.dtype == "int64"
                else draw.standard_normal(shapes[t.name]).astype(t.dtype) for t in spec.inputs
            }  # fmt: skip
            expected = here.run(**given)
            found = there.run(**given)
            outputs = {name: np.zeros_like(value) for name, value in expected.items()}
            there.bind(given, outputs)()
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value)
                np.testing.assert_array_equal(outputs[name], value)


@pytest.mark.parametrize("num_beams", [1, 4])
def test_captions_are_those_of_the_cpu(bundle: Bundle, library: ModuleType, num_beams: int) -> None:
    """Recurrent states and what is read of the images stay on the device; rows move there as beams fork and end."""
    build(bundle)
    decode = bundle.manifest.decode
    assert decode is not None
    pixels = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    options = DecodeOptions(num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=8)
    found = []
    for engine_options in (EngineOptions(threads=1), TENSORRT):
        sessions = Sessions(bundle, engine_options)
        values = sessions.run_chain(decode.chain, {"pixels": pixels})
        found.append(generate(StepModel.open(decode, sessions.get), values, options))
    assert [[h.tokens for h in image] for image in found[0]] == [[h.tokens for h in image] for image in found[1]]
    assert [[h.score for h in image] for image in found[0]] == [[h.score for h in image] for image in found[1]]


# --- building


def test_progress_is_told_and_timings_are_kept(bundle: Bundle, library: ModuleType) -> None:
    lines: list[str] = []
    build(bundle, lines=lines)
    assert lines[0].startswith("reading ")
    assert "building image_encoder.onnx: building engine, 1 of 2" in lines
    assert not any("tactics" in line for line in lines)  # of the phases within phases there are thousands
    assert timing_file(MACHINE).read_bytes() == b"timings"
    first, second = library.built[0].configs[0], library.built[1].configs[0]
    assert (first.cache.content, second.cache.content) == (b"", b"timings")
    timing_file(MACHINE).write_bytes(b"of another GPU")
    build(bundle)
    assert library.built[-1].configs[0].cache.content == b"timings"


def test_every_declared_range_is_a_profile(bundle: Bundle, library: ModuleType) -> None:
    one, many = WHOLE | exporter.parse_profile("rows=1"), WHOLE | exporter.parse_profile("rows=5:5:8")
    build(bundle, one, many)
    shapes = [p.shapes for b in library.built for p in b.configs[0].profiles if "hidden" in p.shapes]
    assert [shape["hidden"] for shape in shapes] == [((1, 7), (1, 7), (1, 7)), ((5, 7), (5, 7), (8, 7))]
    step = open_session(bundle, "caption_step", TENSORRT)
    for rows in (1, 6):
        step.run(token=np.ones(rows, np.int64), hidden=np.ones((rows, 7), np.float32),
                 memory=np.ones((1, 16, 5), np.float32))  # fmt: skip
    with pytest.raises(EngineError, match=r"shape \[3(, 7)?\], its engine takes \[5(, 7)?\] to \[8(, 7)?\]") as caught:
        step.run(token=np.ones(3, np.int64), hidden=np.ones((3, 7), np.float32),
                 memory=np.ones((1, 16, 5), np.float32))  # fmt: skip
    assert "--profile" in caught.value.hint


def test_axes_that_are_a_multiple_follow_their_base() -> None:
    assert exporter._sizes("8*height", exporter.parse_profile("height=4:8:16")) == (32, 64, 128)


def test_an_interrupt_ends_the_build(bundle: Bundle, library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that waits is interrupted; the one that builds hears of it at its next step and returns nothing."""
    begun, results = threading.Event(), []
    build_network, join = library.Builder.build_serialized_network, threading.Thread.join

    def slow(self: object, network: object, config: object) -> object:
        begun.set()
        assert config.progress_monitor.cancelled.wait(30)  # type: ignore[attr-defined]
        results.append(build_network(self, network, config))
        return results[-1]

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        if self.name == "vlrt-tensorrt" and timeout is not None:
            assert begun.wait(30)
            raise KeyboardInterrupt
        join(self, timeout)

    monkeypatch.setattr(library.Builder, "build_serialized_network", slow)
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(bundle)
    assert results == [None]
    with pytest.raises(EngineError, match="no TensorRT engine"):
        open_session(bundle, "image_encoder", TENSORRT)


# --- what is missing, and what does not fit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows", "does not read as ranges"),
        ("rows=1:2", "does not read as ranges"),
        ("rows=a", "does not read as ranges"),
        ("=3", "does not read as ranges"),
        ("rows=5:1:8", "5:1:8 is not in order"),
        ("rows=0", "0:0:0 is not in order"),
    ],
)
def test_ranges_that_cannot_be_meant(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        exporter.parse_profile(text)


def test_an_axis_without_a_range_is_named_before_anything_is_built(bundle: Bundle, library: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"ranges of axes of any size: `length` of `text_encoder\.onnx`") as caught:
        build(bundle, {})
    assert caught.value.hint == "--profile length=SMALLEST:USUAL:LARGEST"
    assert not library.built


def test_a_graph_that_was_not_built_says_how_to(bundle: Bundle, library: ModuleType) -> None:
    with pytest.raises(EngineError, match=r"`image_encoder\.onnx` has no TensorRT engine for NVIDIA Made Up") as caught:
        open_session(bundle, "image_encoder", TENSORRT)
    assert caught.value.hint == f"vlrt export {bundle.name} --source {bundle.path} --target tensorrt"


@pytest.mark.parametrize(
    "other",
    [Machine("NVIDIA Older", "8.0", "10.16.1"), Machine(HERE.name, HERE.capability, "10.1.0")],
    ids=["GPU", "TensorRT"],
)
def test_engines_of_another_machine_are_named(bundle: Bundle, library: ModuleType, other: Machine) -> None:
    EngineStore(bundle, "image_encoder").keep(other, [WHOLE], b"plan of another")
    with pytest.raises(EngineError) as caught:
        open_session(bundle, "image_encoder", TENSORRT)
    assert caught.value.what.endswith(f"for {MACHINE}, only for {other}")


def test_another_graph_has_another_engine(bundle: Bundle, library: ModuleType, tiny: ModuleType) -> None:
    build(bundle)
    path = bundle.path / "image_encoder.onnx"
    path.write_bytes(path.read_bytes() + b"\x3a\x00")  # an empty graph merged into it: the same model, another file
    tiny.reseal(bundle.path)
    with pytest.raises(EngineError, match="no TensorRT engine"):
        open_session(Bundle.open(bundle.path), "image_encoder", TENSORRT)


def test_a_damaged_engine_is_not_loaded(bundle: Bundle, library: ModuleType) -> None:
    for plan in build(bundle):
        content = bytearray(plan.read_bytes())
        content[-1] ^= 1
        plan.write_bytes(content)
    with pytest.raises(EngineError, match=r"engine of `image_encoder\.onnx` is damaged") as caught:
        open_session(bundle, "image_encoder", TENSORRT)
    assert "--target tensorrt" in caught.value.hint


def test_an_engine_that_tensorrt_refuses(bundle: Bundle, library: ModuleType) -> None:
    EngineStore(bundle, "image_encoder").keep(MACHINE, [WHOLE], b"something else")
    with pytest.raises(EngineError, match="cannot be loaded: 6: the engine plan file is not compatible"):
        open_session(bundle, "image_encoder", TENSORRT)


def test_an_engine_with_other_inputs_is_refused(bundle: Bundle, library: ModuleType) -> None:
    plans = {plan.parent.parent: plan for plan in build(bundle)}
    stores = [EngineStore(bundle, role) for role in ("image_encoder", "caption_memory")]
    EngineStore(bundle, "image_encoder").keep(MACHINE, [{}], plans[stores[1]._all].read_bytes())
    with pytest.raises(BundleError, match=r"the engine of `image_encoder\.onnx` has"):
        open_session(bundle, "image_encoder", TENSORRT)


@pytest.mark.parametrize("kind", ["Builder", "Runtime"])
def test_a_driver_that_is_too_old(
    bundle: Bundle, library: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The bindings have nothing to wrap then; why is in the log alone."""

    def nothing(log: Any) -> None:
        log.log(library.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    build(bundle)
    monkeypatch.setattr(library, kind, nothing)
    with pytest.raises(EngineError, match=r"TensorRT 10\.16\.1 does not start: CUDA initialization failure") as caught:
        build(bundle) if kind == "Builder" else open_session(bundle, "image_encoder", TENSORRT)
    assert "update NVIDIA's driver" in caught.value.hint


def test_without_a_driver(bundle: Bundle, library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(index: int) -> Gpu:
        raise EngineError("no NVIDIA driver: `libcuda.so.1` cannot be loaded", "install NVIDIA's driver")

    monkeypatch.setattr(exporter, "gpu", absent)
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        build(bundle)


def test_the_command_builds_and_says_where(
    bundle: Bundle, library: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "tiny", "--source", str(bundle.path), "--target", "tensorrt"]
    main([*command, "--profile", RANGES, "--json"])
    printed = capsys.readouterr()
    assert len(json.loads(printed.out)["engines"]) == len(bundle.manifest.graphs)
    assert "building image_encoder.onnx" in printed.err
    with pytest.raises(SystemExit) as ended:
        main([*command])
    assert ended.value.code == 2
    assert "--profile length=SMALLEST:USUAL:LARGEST" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "rows=1"], "`--profile` goes with an engine"),
        (["--profile", "rows=1", "--target", "cuda"], "`--profile` goes with an engine"),
        (["--target", "tensorrt", "--precision", "int8"], "`--precision` does not go with `--target tensorrt`"),
        (["--target", "tensorrt", "-o", "x"], "`--output` does not go with `--target tensorrt`"),
        (["--target", "cuda", "--random"], "`--random` does not go with `--target cuda`"),
        (["--target", "cuda", "--labels-file", "x"], "`--labels-file` does not go with `--target cuda`"),
        (["--target", "tensorrt"], "no model or bundle is called `tiny`"),
    ],
)
def test_options_that_cannot_be_meant(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "tiny", *options])
    assert message in capsys.readouterr().err


def test_on_this_machine_each_missing_thing_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no NVIDIA driver: `none\.so` cannot be loaded") as caught:
        cuda_driver.Driver("none.so")
    assert "nvidia-smi" in caught.value.hint
