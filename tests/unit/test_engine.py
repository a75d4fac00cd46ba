"""Sessions on ONNX Runtime: run and bind agree, everything that does not fit is refused, no device is made up."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions, Session, Sessions, open_session
from vlrt.engines import onnxruntime as engine
from vlrt.engines.session import check_array
from vlrt.errors import BundleError, EngineError, UsageError
from vlrt.manifest import TensorSpec


@pytest.fixture(scope="module")
def bundle(tiny_bundle_folder: Path) -> Bundle:
    return Bundle.open(tiny_bundle_folder)


@pytest.fixture(scope="module")
def step(bundle: Bundle) -> Session:
    return open_session(bundle, "caption_step", EngineOptions())


def step_inputs(rows: int, images: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "token": random.integers(0, 15, rows),
        "hidden": random.standard_normal((rows, 7)).astype(np.float32),
        "memory": random.standard_normal((images, 16, 5)).astype(np.float32),
    }


def step_outputs(rows: int) -> dict[str, np.ndarray]:
    shapes = {"logits": 15, "hidden_next": 7, "attention": 16}
    return {name: np.full((rows, width), np.nan, np.float32) for name, width in shapes.items()}


# --- run and bind


@pytest.mark.parametrize(("rows", "images"), [(1, 1), (3, 1), (6, 2)])
def test_run_and_bind_agree(step: Session, rows: int, images: int) -> None:
    inputs, outputs = step_inputs(rows, images), step_outputs(rows)
    step.bind(inputs, outputs)()
    for name, value in step.run(**inputs).items():
        assert np.array_equal(outputs[name], value)


def test_a_bound_run_reads_and_writes_the_very_buffers(step: Session) -> None:
    """What the caller put into an input before the call counts, and results are where they were promised."""
    inputs, outputs = step_inputs(4), step_outputs(4)
    addresses = {name: array.ctypes.data for name, array in outputs.items()}
    run = step.bind(inputs, outputs)
    for seed in range(5):
        fresh = step_inputs(4, seed=seed)
        for name, array in inputs.items():
            array[...] = fresh[name]
        run()
        expected = step.run(**fresh)
        assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
    assert addresses == {name: array.ctypes.data for name, array in outputs.items()}


def test_a_binding_keeps_its_buffers_alive(step: Session) -> None:
    inputs, outputs = step_inputs(2), step_outputs(2)
    expected = step.run(**inputs)["logits"].copy()
    run, logits = step.bind(inputs, outputs), outputs["logits"]
    del inputs, outputs
    noise = [np.random.default_rng(i).standard_normal(1000) for i in range(100)]
    run()
    assert np.array_equal(logits, expected)
    assert len(noise) == 100


def test_rows_share_nothing(step: Session) -> None:
    inputs = step_inputs(6, 2)
    whole = step.run(**inputs)["logits"]
    for image in range(2):
        rows = slice(3 * image, 3 * image + 3)
        part = step.run(
            token=inputs["token"][rows], hidden=inputs["hidden"][rows], memory=inputs["memory"][image : image + 1]
        )
        assert np.allclose(part["logits"], whole[rows], atol=1e-6)


def test_threads_may_run_one_session_at_once(step: Session) -> None:
    expected = [step.run(**step_inputs(3, seed=seed))["logits"] for seed in range(4)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        inputs, outputs = step_inputs(3, seed=seed), step_outputs(3)
        run = step.bind(inputs, outputs)
        for _ in range(200):
            run()
            if not np.array_equal(outputs["logits"], expected[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": np.zeros(3, np.int32)}, "input `token` has dtype `int32`, expected `int64`"),
        ({"hidden": np.zeros((3, 7))}, "input `hidden` has dtype `float64`, expected `float32`"),
        ({"hidden": np.zeros((3, 8), np.float32)}, r"input `hidden` has shape \[3, 8\], expected \[rows, 7\]"),
        ({"hidden": np.zeros((2, 7), np.float32)}, r"input `hidden` has shape \[2, 7\], expected \[rows, 7\]"),
        ({"hidden": np.zeros(7, np.float32)}, r"input `hidden` has shape \[7\]"),
        ({"cell": np.zeros(3)}, "missing or unknown `cell`"),
        ({"token": None}, "missing or unknown `token`"),
    ],
)
def test_inputs_that_do_not_fit(step: Session, change: dict[str, np.ndarray | None], message: str) -> None:
    inputs = {name: value for name, value in (step_inputs(3) | change).items() if value is not None}
    with pytest.raises(EngineError, match=message):
        step.run(**inputs)
    with pytest.raises(EngineError, match=message):
        step.bind(inputs, step_outputs(3))


def test_outputs_that_do_not_fit(step: Session) -> None:
    inputs, outputs = step_inputs(3), step_outputs(3)
    frozen = np.zeros((3, 15), np.float32)
    frozen.flags.writeable = False
    for change, message in (
        ({"logits": np.zeros((2, 15), np.float32)}, r"output `logits` has shape \[2, 15\], expected \[rows, 15\]"),
        ({"logits": np.zeros((3, 15))}, "output `logits` has dtype `float64`"),
        ({"logits": np.zeros((15, 3), np.float32).T}, "buffer `logits` is not C-contiguous"),
        ({"logits": frozen}, "output `logits` is read-only"),
        ({"more": np.zeros(3, np.float32)}, "missing or unknown `more`"),
    ):
        with pytest.raises(EngineError, match=message):
            step.bind(inputs, outputs | change)
    with pytest.raises(EngineError, match="missing or unknown `attention`"):
        step.bind(inputs, {name: outputs[name] for name in ("logits", "hidden_next")})
    with pytest.raises(EngineError, match="buffer `hidden` is not C-contiguous"):
        step.bind(inputs | {"hidden": np.zeros((7, 3), np.float32).T}, outputs)


def test_named_axes_must_agree() -> None:
    axes: dict[str, int] = {}
    check_array(TensorSpec("a", "float32", ("n", 2)), np.zeros((3, 2), np.float32), axes, "input")
    assert axes == {"n": 3}
    with pytest.raises(EngineError, match="input `b`"):
        check_array(TensorSpec("b", "float32", ("n",)), np.zeros(4, np.float32), axes, "input")


def test_what_the_graph_itself_refuses_is_one_line(step: Session, capfd: pytest.CaptureFixture[str]) -> None:
    """An id beyond the embedding; and the engine's own log stays off the terminal."""
    inputs = step_inputs(2) | {"token": np.array([0, 99])}
    for call in (lambda: step.run(**inputs), step.bind(inputs, step_outputs(2))):
        with pytest.raises(EngineError, match=r"`caption_step\.onnx` failed: .*indices") as caught:
            call()
        assert "\n" not in caught.value.what
    assert capfd.readouterr().err == ""


# --- devices


@pytest.mark.parametrize(
    ("device", "kind", "message", "hint"),
    [
        ("cuda:0", EngineError, "device `cuda:0` needs CUDAExecutionProvider, this onnxruntime has", r"vlrt\[gpu\]"),
        ("coreml", EngineError, "needs CoreMLExecutionProvider", "macOS"),
        ("dml", EngineError, "needs DmlExecutionProvider", "onnxruntime-directml"),
        ("tensorrt:0", EngineError, "tensorrt cannot be imported", r"vlrt\[tensorrt\].*--device cuda:0"),
        ("tpu", UsageError, "unknown device `tpu`", "`cpu`, `cuda`"),
        ("", UsageError, "unknown device ``", "`cpu`"),
        ("CPU", UsageError, "unknown device `CPU`", "`cpu`"),
        ("cuda:first", UsageError, "has the index `first`, expected a number", "cuda:0"),
        ("cuda:0:fast", UsageError, "unknown device `cuda:0:fast`", "cuda:0:graph"),
        ("cpu:0:graph", UsageError, "unknown device `cpu:0:graph`", "cuda:0:graph"),
        ("tensorrt:first", UsageError, "has the index `first`, expected a number", "tensorrt:0"),
    ],
)
def test_devices_that_cannot_be_had(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, device: str, kind: type, message: str, hint: str
) -> None:
    monkeypatch.setattr(engine.load_library(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(kind, match=message) as caught:
        open_session(bundle, "image_encoder", EngineOptions(device))
    assert re.search(hint, caught.value.hint)


def test_a_provider_that_is_offered_but_does_not_start(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu on a machine without CUDA: the session would quietly run on the CPU."""
    library = engine.load_library()
    session = library.InferenceSession
    asked: list[object] = []

    def left_out(path: str, settings: object, *, providers: list[object], **more: object) -> object:
        asked.extend(providers)
        return session(path, settings, providers=["CPUExecutionProvider"], **more)

    monkeypatch.setattr(library, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(library, "InferenceSession", left_out)
    with pytest.raises(EngineError, match="`cuda:1` cannot be used: CUDAExecutionProvider did not start"):
        engine.OnnxRuntimeSession(*bundle.graph("image_encoder"), EngineOptions("cuda:1"))
    assert asked == [("CUDAExecutionProvider", {"device_id": "1"})]


def run_blocked(module: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter in which importing `module` fails."""
    blocker = f"""
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {module!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Blocker())
    """
    script = textwrap.dedent(blocker) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_without_onnxruntime_the_user_is_told_what_to_install(tiny_bundle_folder: Path, photographs: Path) -> None:
    code = f"""
        from vlrt.cli import main
        main(["run", "caption", {str(photographs / "a.jpg")!r}, "--model", {str(tiny_bundle_folder)!r}])
    """
    done = run_blocked("onnxruntime", code)
    assert done.returncode == 1
    assert done.stdout == ""
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: onnxruntime cannot be imported")
    assert hint == "hint: pip install 'vlrt[cpu]'"


def test_info_names_a_missing_engine() -> None:
    done = run_blocked("onnxruntime", 'from vlrt.cli import main; main(["info", "--json"])')
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert not {"cpu", "cuda"} & set(found["devices"])
    assert "cannot be imported" in found["problems"][0]["what"]
    assert "vlrt[cpu]" in found["problems"][0]["hint"]


def test_the_shell_that_an_uninstalled_twin_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(EngineError, match="installed but empty") as caught:
        engine.load_library()
    assert "uninstall" in caught.value.hint


# --- settings


def test_threads() -> None:
    assert EngineOptions(threads=3).thread_count == 3
    assert EngineOptions().thread_count >= 1
    with pytest.raises(UsageError, match="`threads` is -1"):
        EngineOptions(threads=-1)


def test_threads_count_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows."""
    monkeypatch.setattr("vlrt.engines.session.os", SimpleNamespace(cpu_count=lambda: 5))
    assert EngineOptions(threads=2).thread_count == 2
    assert EngineOptions().thread_count == 5


def test_sessions_of_other_thread_counts_live_side_by_side(bundle: Bundle) -> None:
    inputs = step_inputs(3)
    found = [open_session(bundle, "caption_step", EngineOptions(threads=n)).run(**inputs) for n in (1, 2, 3)]
    assert all(np.allclose(found[0]["logits"], other["logits"], atol=1e-6) for other in found)


def test_other_users_of_the_library_are_left_alone(bundle: Bundle, step: Session, tiny_bundle_folder: Path) -> None:
    """A pool of threads for the whole process would forbid them pools of their own."""
    path = str(tiny_bundle_folder / "caption_step.onnx")
    theirs = engine.load_library().InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = step_inputs(3)
    assert np.allclose(theirs.run(["logits"], inputs)[0], step.run(**inputs)["logits"], atol=1e-6)


def test_a_profile_is_written_where_it_was_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    session = open_session(bundle, "caption_step", EngineOptions(profile=tmp_path))
    session.run(**step_inputs(2))
    path = session.end_profile()
    assert path.parent == tmp_path
    assert path.name.startswith("caption_step")
    assert any(event.get("cat") == "Node" for event in json.loads(path.read_text("utf-8")))


# --- several graphs


def test_sessions_load_each_graph_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counting(bundle: Bundle, role: str, options: EngineOptions) -> Session:
        opened.append(role)
        return open_session(bundle, role, options)

    monkeypatch.setattr("vlrt.engines.open_session", counting)
    sessions = Sessions(bundle)
    sessions.prepare(["image_encoder", "caption_memory"])
    sessions.prepare(["caption_memory", "image_encoder"])
    assert sessions.get("image_encoder") is sessions.get("image_encoder")
    assert sessions.get("caption_memory") is sessions.get("caption_memory")
    assert sorted(opened) == ["caption_memory", "image_encoder"]


def test_a_chain_finds_its_inputs_in_earlier_outputs(bundle: Bundle) -> None:
    sessions = Sessions(bundle)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    found = sessions.run_chain(("image_encoder", "image_embedding"), {"pixels": pixels})
    assert sorted(found) == ["image_embedding", "regions"]
    assert np.allclose(np.linalg.norm(found["image_embedding"], axis=1), 1, atol=1e-6)
    regions = {"regions": found["regions"]}
    assert np.array_equal(sessions.run_chain(["image_embedding"], regions)["image_embedding"], found["image_embedding"])


def test_a_chain_with_a_gap_and_a_role_that_is_not_there(bundle: Bundle) -> None:
    sessions = Sessions(bundle)
    with pytest.raises(BundleError, match="input `regions` of the graph `image_embedding` comes from nowhere"):
        sessions.run_chain(["image_embedding"], {})
    with pytest.raises(BundleError, match="has no graph `unet`"):
        sessions.run_chain(["unet"], {})


def test_a_graph_that_cannot_be_loaded_says_so_each_time(tiny: ModuleType, tiny_copy: Path) -> None:
    (tiny_copy / "image_encoder.onnx").write_bytes(b"\x08\x0a")
    tiny.reseal(tiny_copy)
    sessions = Sessions(Bundle.open(tiny_copy))
    sessions.prepare(["image_encoder"])
    for _ in range(2):
        with pytest.raises(BundleError, match=r"`image_encoder\.onnx` cannot be loaded"):
            sessions.get("image_encoder")


def test_only_onnx_graphs_are_given_to_onnxruntime(tiny: ModuleType, tiny_copy: Path) -> None:
    """A name that ends in .ort makes the library read another format, which nobody has looked through."""
    (tiny_copy / "image_encoder.onnx").rename(tiny_copy / "image_encoder.ort")
    value = json.loads((tiny_copy / "manifest.json").read_text("utf-8"))
    value["files"]["image_encoder.ort"] = value["files"].pop("image_encoder.onnx")
    value["graphs"]["image_encoder"]["file"] = "image_encoder.ort"
    (tiny_copy / "manifest.json").write_text(json.dumps(value), "utf-8")
    with pytest.raises(BundleError, match=r"`image_encoder\.ort` is not an ONNX graph by its name"):
        Sessions(Bundle.open(tiny_copy)).get("image_encoder")
