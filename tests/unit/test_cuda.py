"""The CUDA provider without a GPU: NVIDIA's driver by its C interface, states on a device, captures, refusals."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from vlrt import engines, load
from vlrt.bundle import Bundle
from vlrt.cli import main
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.decode.scoring import score_continuations
from vlrt.device_memory import Block, DeviceArray
from vlrt.engines import EngineOptions, Sessions, cuda, cuda_driver, open_session
from vlrt.engines import onnxruntime as engine
from vlrt.engines.cuda import CudaSession
from vlrt.engines.cuda_driver import CudaMemory, Driver
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.errors import EngineError
from vlrt.manifest import GraphSpec, TensorSpec

CPU = EngineOptions(threads=1)


@pytest.fixture
def bundle(tiny_bundle_folder: Path) -> Bundle:
    return Bundle.open(tiny_bundle_folder)


# --- NVIDIA's driver


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up driver, compiled."""
    target = tmp_path_factory.mktemp("driver") / "libcuda.so"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang") or "cc"
    source = Path(__file__).parents[1] / "fake_cuda_driver.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", target, source], check=True)
    return target


@pytest.fixture
def driver(library: Path) -> Driver:
    return Driver(str(library))


def test_gpus_are_named(driver: Driver) -> None:
    (found,) = driver.gpus()
    assert (found.index, found.name, found.capability, found.memory) == (0, "NVIDIA No 40", "9.1", 5 << 30)


def test_arrays_go_there_and_come_back(driver: Driver) -> None:
    memory = CudaMemory(0, driver)
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    there, back = memory.empty(array.shape, array.dtype), np.full_like(array, -1)
    memory.download(there, back)
    memory.finish()
    assert not back.any()  # new memory is zeros, whatever lay there
    memory.upload(array, there)
    memory.download(there, back)
    memory.finish()
    np.testing.assert_array_equal(back, array)
    second = there.part(array[0].nbytes, (1, 3, 4))
    memory.download(second, back[:1])
    np.testing.assert_array_equal(back[0], array[1])


def test_blocks_are_copied_where_they_lie(driver: Driver) -> None:
    """Rows 0 to 2 of two caches [2 heads, 5 positions, 3]: three positions of row 0 to row 2."""
    memory = CudaMemory(0, driver)
    before = np.random.default_rng(0).standard_normal((2, 3, 2, 5, 3)).astype(np.float32)
    there = memory.empty(before.shape, before.dtype)
    memory.upload(before, there)
    row, pitch = before[0, 0].nbytes, before[0, 0, 0].nbytes
    memory.copy(Block(there.address, there.address + 2 * row, 3 * 12, 2, 2, pitch, 6))
    after = np.empty_like(before)
    memory.download(there, after)
    memory.finish()
    expected = before.copy()
    expected[:, 2, :, :3] = before[:, 0, :, :3]
    np.testing.assert_array_equal(after, expected)


def test_memory_goes_back_with_its_last_array(driver: Driver, library: Path) -> None:
    counts = ctypes.CDLL(str(library))
    live = lambda: ctypes.c_int.in_dll(counts, "live_allocations").value  # noqa: E731
    memory = CudaMemory(0, driver)
    gc.collect()
    before = live()
    whole = memory.empty((4, 4), np.dtype(np.float32))
    part = whole.part(16, (1, 4))
    del whole
    assert live() == before + 1
    del part
    assert live() == before


def test_any_thread_may_use_a_memory(driver: Driver) -> None:
    """The driver's context is a thread's own; one that never set it would be refused."""
    memory, failed = CudaMemory(0, driver), []

    def work() -> None:
        try:
            array = np.ones(3, np.float32)
            memory.upload(array, memory.empty((3,), array.dtype))
            memory.finish()
        except EngineError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


def test_what_the_driver_refuses_is_said_in_its_words(driver: Driver) -> None:
    with pytest.raises(EngineError, match=r"`cuMemAlloc_v2` failed: out of memory \(2\)") as caught:
        CudaMemory(0, driver).empty((1 << 30,), np.dtype(np.float32))
    assert "smaller batch" in caught.value.hint
    with pytest.raises(EngineError, match=r"there is no GPU 3: the driver finds `cuda:0` \(NVIDIA No 40\)"):
        CudaMemory(3, driver)


def test_a_driver_without_a_gpu(library: Path) -> None:
    switch = ctypes.CDLL(str(library)).set_devices
    switch(0)
    try:
        with pytest.raises(EngineError, match="the NVIDIA driver finds no GPU") as caught:
            Driver(str(library))
    finally:
        switch(1)
    assert "nvidia-smi" in caught.value.hint


# --- what is missing, each in one line


@pytest.fixture
def with_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(engine.load_library(), "get_available_providers", lambda: offered)


@pytest.mark.usefixtures("with_provider")
def test_a_provider_without_a_driver(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "CudaMemory", lambda index: Driver("no-such-libcuda.so"))
    with pytest.raises(EngineError, match=r"no NVIDIA driver: `no-such-libcuda\.so` cannot be loaded"):
        open_session(bundle, "image_encoder", EngineOptions("cuda:0"))


@pytest.mark.usefixtures("with_provider")
def test_a_driver_without_cudas_libraries(
    bundle: Bundle, fake_device: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What onnxruntime prints when it preloads them is not printed, and becomes the reason."""
    library, create = engine.load_library(), onnxruntime.InferenceSession
    monkeypatch.setattr(cuda, "CudaMemory", lambda index: fake_device.FakeMemory())
    monkeypatch.setattr(library, "preload_dlls", lambda: print("Failed to load libcublas.so.13: no such file"))
    left_out = lambda path, settings, providers, **more: create(path, settings, providers=["CPUExecutionProvider"])  # noqa: E731
    monkeypatch.setattr(library, "InferenceSession", left_out)
    with pytest.raises(EngineError, match=r"did not start; Failed to load libcublas\.so\.13") as caught:
        open_session(bundle, "image_encoder", EngineOptions("cuda:0"))
    assert "vlrt[gpu]" in caught.value.hint


@pytest.mark.usefixtures("with_provider")
def test_a_graph_that_cannot_be_captured(
    bundle: Bundle, fake_device: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: str, settings: object, **more: object) -> object:
        raise RuntimeError("This session cannot use the graph capture feature as requested by the user")

    monkeypatch.setattr(cuda, "CudaMemory", lambda index: fake_device.FakeMemory())
    monkeypatch.setattr(engine.load_library(), "InferenceSession", refuses)
    with pytest.raises(EngineError, match="cannot use the graph capture feature") as caught:
        open_session(bundle, "image_encoder", EngineOptions("cuda:0:graph"))
    assert caught.value.hint == "use `--device cuda:0`, without `:graph`"


def test_attention_in_floats_would_fall_back(tmp_path: Path) -> None:
    """The provider has the operator for halves alone, and would leave it, caches and all, to the CPU."""
    attention = helper.make_node("GroupQueryAttention", ["x"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [attention],
        "step",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "step.onnx")
    floats, halves = (
        GraphSpec("step.onnx", "fp32", (TensorSpec("x", dtype, (1,)),), ()) for dtype in ("float32", "float16")
    )
    with pytest.raises(EngineError, match="attends with `GroupQueryAttention` in float32"):
        cuda.refuse_unserved(floats, tmp_path / "step.onnx")
    cuda.refuse_unserved(halves, tmp_path / "step.onnx")


# --- states on the device


Opened = Callable[[Bundle, str, EngineOptions], CudaSession]


@pytest.fixture
def opened(fake_device: ModuleType) -> Callable[..., Opened]:
    """Opens sessions of the CPU provider whose device is a memory of its own."""

    def choose(captures: bool, memories: list[Any]) -> Opened:
        def open_one(bundle: Bundle, role: str, options: EngineOptions) -> CudaSession:
            memories.append(fake_device.FakeMemory())
            loaded = OnnxRuntimeSession(*bundle.graph(role), options)
            return CudaSession(fake_device.session_on(loaded, memories[-1]), memories[-1], onnxruntime, captures)

        return open_one

    return choose


@pytest.mark.parametrize("captures", [False, True], ids=["plain", "captured"])
@pytest.mark.parametrize("num_beams", [1, 4])
def test_captions_are_those_of_the_cpu(
    bundle: Bundle, opened: Callable[..., Opened], num_beams: int, captures: bool
) -> None:
    """Several images, which end one after the other, so that what is read of them moves."""
    decode = bundle.manifest.decode
    assert decode is not None
    memories: list[Any] = []
    here, there = Sessions(bundle, CPU), opened(captures, memories)
    pixels = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    values = here.run_chain(decode.chain, {"pixels": pixels})
    options = DecodeOptions(num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=9)
    expected = generate(StepModel.open(decode, here.get), values, options)
    model = StepModel.open(decode, lambda role: there(bundle, role, CPU))
    for _ in range(2):  # with the loop, bindings and memory of the first run
        found = generate(model, values, options)
        assert [[(h.tokens, h.score) for h in image] for image in found] == [
            [(h.tokens, h.score) for h in image] for image in expected
        ]
    lengths = {len(h.tokens) for image in expected for h in image}
    assert len(lengths) > 1
    assert memories[-1].copied


def test_scores_are_those_of_the_cpu(bundle: Bundle, opened: Callable[..., Opened]) -> None:
    decode = bundle.manifest.decode
    assert decode is not None
    here, there = Sessions(bundle, CPU), opened(False, [])
    pixels = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    values = here.run_chain(decode.chain, {"pixels": pixels})
    models = [StepModel.open(decode, here.get), StepModel.open(decode, lambda role: there(bundle, role, CPU))]
    scores = [score_continuations(model, values, [1], [[4, 6, 2], [5, 7, 10, 2], [8]]) for model in models]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("captures", [False, True], ids=["plain", "captured"])
def test_pictures_are_those_of_the_cpu(
    latent_bundle: Path, opened: Callable[..., Opened], captures: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not change over the steps is sent once; of every step sample, time and prediction cross."""
    expected = load("generate", latent_bundle, threads=1)("a red dog", seed=3, steps=5)
    memories: list[Any] = []
    monkeypatch.setattr(engines, "open_session", opened(captures, memories))
    found = load("generate", latent_bundle, threads=1)("a red dog", seed=3, steps=5)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    bound = [memory for memory in memories if memory.sent]
    assert len(bound) == 1
    per_step = 2 * len(bound[0].fetched) if captures else 0
    assert len(bound[0].sent) == 1 + per_step


def test_every_shape_is_captured_once(bundle: Bundle, opened: Callable[..., Opened]) -> None:
    """Two bindings of one shape replay one graph, each over what it was bound to."""
    session = opened(True, [])(bundle, "caption_step", CPU)
    numbers: list[str] = []
    make = session._run_options
    session._run_options = lambda number: (numbers.append(number), make(number))[1]  # type: ignore[method-assign]
    draw = np.random.default_rng(0)
    bound = []
    for rows in (2, 3, 2):
        given = {
            "token": draw.integers(0, 9, rows),
            "hidden": draw.standard_normal((rows, 7)).astype(np.float32),
            "memory": draw.standard_normal((1, 16, 5)).astype(np.float32),
        }
        expected = session.run(**given)
        outputs = {name: np.zeros_like(value) for name, value in expected.items()}
        kept = session.keep({"memory": given["memory"]})
        bound.append((session.bind({**given, **kept}, outputs), outputs, expected))
    for run, outputs, expected in (*bound, *bound):
        run()
        for name, value in expected.items():
            np.testing.assert_array_equal(outputs[name], value)
            outputs[name][...] = 0
    assert [number for number in numbers if number != "-1"] == ["1", "2"]


def test_what_the_graph_reads_on_the_cpu_is_not_kept_on_the_device(
    bundle: Bundle, opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime would copy it back when it is bound, and never look at the device again."""
    session = opened(False, [])(bundle, "caption_step", CPU)
    places = session._loaded.places_of_inputs()
    assert set(places.values()) == {"cpu"}  # the name of the device that is made up here
    given = {"token": np.ones(2, np.int64), "hidden": np.ones((2, 7), np.float32)}
    memory = session.keep({"memory": np.ones((1, 16, 5), np.float32)})
    outputs = {
        name: np.zeros_like(value)
        for name, value in session.run(**given, memory=np.ones((1, 16, 5), np.float32)).items()
    }
    session.bind({**given, **memory}, outputs)
    monkeypatch.setattr(session._loaded, "places_of_inputs", lambda: places | {"memory": "elsewhere"})
    with pytest.raises(EngineError, match=r"`memory` of `caption_step\.onnx` is read on the CPU"):
        session.bind({**given, **memory}, outputs)


def test_what_grows_in_place_is_not_captured() -> None:
    shared = DeviceArray(4096, (2,), np.dtype(np.float32))
    other = DeviceArray(8192, (2,), np.dtype(np.float32))
    assert cuda._extends_in_place({"past": shared}, {"present": shared})
    assert not cuda._extends_in_place({"past": shared, "x": np.zeros(2)}, {"present": other, "y": np.zeros(2)})


def test_the_provider_is_asked_for_what_was_chosen() -> None:
    library = SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider"])
    assert engine.find_provider(library, "cuda") == ("CUDAExecutionProvider", {"device_id": "0"})
    assert engine.find_provider(library, "cuda:2") == ("CUDAExecutionProvider", {"device_id": "2"})
    captured = {"device_id": "1", "enable_cuda_graph": "1"}
    assert engine.find_provider(library, "cuda:1:graph") == ("CUDAExecutionProvider", captured)


# --- what `vlrt info` says


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with contextlib.suppress(SystemExit):
        main(["info", "--json"])
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


@pytest.mark.usefixtures("with_provider")
def test_info_names_the_gpus(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_driver, "driver", lambda: driver)
    assert "cuda:0 (NVIDIA No 40, 5 GB)" in told(capsys)["devices"]


@pytest.mark.usefixtures("with_provider")
def test_info_says_why_a_gpu_build_has_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_driver, "driver", lambda: Driver("no-such-libcuda.so"))
    found = told(capsys)
    assert not any(device.startswith("cuda") for device in found["devices"])
    (problem,) = [problem for problem in found["problems"] if "NVIDIA" in problem["what"]]
    assert "nvidia-smi" in problem["hint"]
