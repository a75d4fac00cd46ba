"""Sessions on OpenVINO: the same protocol and the same results as ONNX Runtime's, and plain words where it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vlrt.bundle import Bundle
from vlrt.cli import main
from vlrt.engines import EngineOptions, Session, Sessions, open_session
from vlrt.engines import openvino as engine
from vlrt.errors import BundleError, EngineError, UsageError
from vlrt.manifest import GraphSpec, TensorSpec

FP32 = EngineOptions("openvino:CPU:fp32", threads=1)
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def bundle(tiny_bundle_folder: Path) -> Bundle:
    return Bundle.open(tiny_bundle_folder)


@pytest.fixture(scope="module")
def step(bundle: Bundle) -> Session:
    return open_session(bundle, "caption_step", FP32)


@pytest.fixture(scope="module")
def expected_step(bundle: Bundle) -> Session:
    return open_session(bundle, "caption_step", EngineOptions(threads=1))


def step_inputs(rows: int, images: int = 1, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        "token": random.integers(0, 15, rows),
        "hidden": random.standard_normal((rows, 7)).astype(np.float32),
        "memory": random.standard_normal((images, 16, 5)).astype(np.float32),
    }


def step_outputs(rows: int) -> Arrays:
    shapes = {"logits": 15, "hidden_next": 7, "attention": 16}
    return {name: np.full((rows, width), np.nan, np.float32) for name, width in shapes.items()}


# --- the same as ONNX Runtime


@pytest.mark.parametrize(("rows", "images"), [(1, 1), (3, 1), (6, 2)])
def test_run_and_bind_give_what_onnxruntime_gives(
    step: Session, expected_step: Session, rows: int, images: int
) -> None:
    inputs, outputs = step_inputs(rows, images), step_outputs(rows)
    step.bind(inputs, outputs)()
    found = step.run(**inputs)
    for name, value in expected_step.run(**inputs).items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
        np.testing.assert_array_equal(outputs[name], found[name])


def test_a_bound_run_reads_and_writes_the_very_buffers(step: Session) -> None:
    inputs, outputs = step_inputs(4), step_outputs(4)
    addresses = {name: array.ctypes.data for name, array in outputs.items()}
    run = step.bind(inputs, outputs)
    for seed in range(5):
        fresh = step_inputs(4, seed=seed)
        for name, array in inputs.items():
            array[...] = fresh[name]
        run()
        for name, value in step.run(**fresh).items():
            np.testing.assert_array_equal(outputs[name], value)
    assert addresses == {name: array.ctypes.data for name, array in outputs.items()}


def test_a_binding_keeps_its_buffers_alive(step: Session) -> None:
    inputs, outputs = step_inputs(2), step_outputs(2)
    expected = step.run(**inputs)["logits"]
    run, logits = step.bind(inputs, outputs), outputs["logits"]
    del inputs, outputs
    noise = [np.random.default_rng(i).standard_normal(1000) for i in range(100)]
    run()
    np.testing.assert_array_equal(logits, expected)
    assert len(noise) == 100


def test_results_of_a_run_are_the_caller_s_own(step: Session) -> None:
    first = step.run(**step_inputs(2, seed=1))["logits"]
    kept = first.copy()
    step.run(**step_inputs(2, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_inputs_may_be_read_only_and_strided(step: Session) -> None:
    plain = step_inputs(3)
    locked = {name: array.copy() for name, array in plain.items()}
    for array in locked.values():
        array.flags.writeable = False
    strided = plain | {"hidden": np.asfortranarray(plain["hidden"])}
    outputs = step_outputs(3)
    step.bind(locked, outputs)()
    expected = step.run(**plain)["logits"]
    np.testing.assert_array_equal(step.run(**locked)["logits"], expected)
    np.testing.assert_array_equal(step.run(**strided)["logits"], expected)
    np.testing.assert_array_equal(outputs["logits"], expected)


def test_threads_may_run_one_session_at_once(step: Session) -> None:
    expected = [step.run(**step_inputs(3, seed=seed))["logits"] for seed in range(4)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(50):
            if not np.array_equal(step.run(**step_inputs(3, seed=seed))["logits"], expected[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_chains_of_a_bundle(bundle: Bundle) -> None:
    pixels = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    chain = ("image_encoder", "image_embedding")
    found = Sessions(bundle, FP32).run_chain(chain, {"pixels": pixels})
    for name, value in Sessions(bundle).run_chain(chain, {"pixels": pixels}).items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_weights_in_a_file_of_their_own(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    model = one_node(helper.make_node("MatMul", ["x", "w"], ["y"]), [onnx.numpy_helper.from_array(weight, "w")])
    path = tmp_path / "graph.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    found = engine.OpenVinoSession(one_node_spec(("weights.bin",)), path, FP32).run(x=x)
    np.testing.assert_allclose(found["y"], x @ weight, atol=1e-5)


# --- precision and devices


def test_bf16_rounds_and_fp32_does_not(tmp_path: Path) -> None:
    if "BF16" not in engine.load_library().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert engine.devices()["openvino:CPU"] == "fp32"
        return
    weight = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    model = one_node(helper.make_node("MatMul", ["x", "w"], ["y"]), [onnx.numpy_helper.from_array(weight, "w")])
    onnx.save(model, tmp_path / "graph.onnx")
    x = np.random.default_rng(1).standard_normal((3, 16)).astype(np.float32)
    error = {}
    for device in ("openvino", "openvino:CPU", "openvino:CPU:bf16", "openvino:CPU:fp32"):
        session = engine.OpenVinoSession(one_node_spec(), tmp_path / "graph.onnx", EngineOptions(device, threads=1))
        error[device] = float(np.abs(session.run(x=x)["y"] - x @ weight).max())
    assert error["openvino:CPU:fp32"] < 1e-5
    assert all(1e-4 < error[device] < 0.2 for device in error if device != "openvino:CPU:fp32")
    assert engine.devices()["openvino:CPU"] == "bf16"


def test_timesteps_are_not_rounded_to_bf16(tmp_path: Path) -> None:
    """999 would be 1000, and its embedding that of another time."""
    nodes = [helper.make_node("Sin", ["x"], ["s"]), helper.make_node("MatMul", ["s", "w"], ["y"])]
    weight = np.eye(16, dtype=np.float32)
    model = one_node(nodes[0], [onnx.numpy_helper.from_array(weight, "w")])
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "graph.onnx")
    x = np.full((2, 16), 999, np.float32) - np.arange(16, dtype=np.float32)
    for device in ("openvino:CPU", "openvino:CPU:bf16", "openvino:CPU:fp32"):
        session = engine.OpenVinoSession(one_node_spec(), tmp_path / "graph.onnx", EngineOptions(device, threads=1))
        np.testing.assert_allclose(session.run(x=x)["y"], np.sin(x), atol=1e-2)
        times, found = np.zeros_like(x), np.zeros_like(x)
        run = session.bind({"x": times}, {"y": found})
        for shift in (0, 3):
            times[...] = x - shift
            run()
            np.testing.assert_allclose(found, np.sin(x - shift), atol=1e-2)


@pytest.mark.parametrize(
    ("device", "kind", "message", "hint"),
    [
        ("openvino:TPU", EngineError, "`openvino:TPU` cannot be had: this OpenVINO finds `openvino:CPU`", "`cpu`"),
        ("openvino:CPU:int4", UsageError, "unknown device `openvino:CPU:int4`", "`fp32`"),
        ("openvino:CPU:fp32:1", UsageError, "unknown device", "openvino:CPU"),
    ],
)
def test_devices_that_cannot_be_had(bundle: Bundle, device: str, kind: type, message: str, hint: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_session(bundle, "caption_step", EngineOptions(device))
    assert hint in caught.value.hint


def test_without_openvino_the_user_is_told_what_to_install(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match="openvino cannot be imported") as caught:
        open_session(bundle, "caption_step", EngineOptions("openvino:CPU"))
    assert caught.value.hint == "pip install 'vlrt[openvino]'"
    with pytest.raises(SystemExit):
        main(["info", "--json"])
    assert "openvino cannot be imported" in json.loads(capsys.readouterr().out)["problems"][0]["what"]


def test_info_names_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info", "--json"])
    devices = json.loads(capsys.readouterr().out)["devices"]
    assert any(device.startswith("openvino:CPU (") for device in devices)


# --- what does not fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": np.zeros(3, np.int32)}, "input `token` has dtype `int32`, expected `int64`"),
        ({"hidden": np.zeros((3, 8), np.float32)}, r"input `hidden` has shape \[3, 8\], expected \[rows, 7\]"),
        ({"cell": np.zeros(3)}, "missing or unknown `cell`"),
    ],
)
def test_inputs_that_do_not_fit(step: Session, change: Arrays, message: str) -> None:
    inputs = step_inputs(3) | change
    for call in (lambda: step.run(**inputs), lambda: step.bind(inputs, step_outputs(3))):
        with pytest.raises(EngineError, match=message):
            call()


def test_buffers_that_do_not_fit(step: Session) -> None:
    inputs, outputs = step_inputs(3), step_outputs(3)
    with pytest.raises(EngineError, match="buffer `logits` is not C-contiguous"):
        step.bind(inputs, outputs | {"logits": np.zeros((15, 3), np.float32).T})
    with pytest.raises(EngineError, match=r"output `logits` has shape \[2, 15\]"):
        step.bind(inputs, outputs | {"logits": np.zeros((2, 15), np.float32)})


@pytest.mark.parametrize("operator", ["GroupQueryAttention", "DecoderMaskedMultiHeadAttention"])
def test_operators_of_onnxruntime_alone_are_named(tmp_path: Path, operator: str) -> None:
    path = tmp_path / "decoder_step.onnx"
    onnx.save(attention_model(operator), path)
    spec = GraphSpec(path.name, "fp32", (), ())
    with pytest.raises(EngineError, match=rf"`decoder_step\.onnx` has the operator `{operator}`") as caught:
        engine.OpenVinoSession(spec, path, FP32)
    assert caught.value.hint == "use `--device cpu` for this bundle"


def test_a_graph_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    onnx.save(one_node(helper.make_node("Relu", ["x"], ["y"])), tmp_path / "graph.onnx")
    for spec, message in (
        (GraphSpec("graph.onnx", "fp32", (tensor("z"),), (tensor("y"),)), r"has the inputs \['x'\], the manifest says"),
        (GraphSpec("graph.onnx", "fp32", (tensor("x", 8),), (tensor("y", 8),)), r"`x` of `graph\.onnx` is float32"),
        (GraphSpec("graph.onnx", "fp32", (tensor("x"),), (TensorSpec("y", "int64", ("n", 16)),)), "`y` of"),
    ):
        with pytest.raises(BundleError, match=message):
            engine.OpenVinoSession(spec, tmp_path / "graph.onnx", FP32)


def test_a_file_that_is_no_graph_is_refused_quietly(
    tiny: ModuleType, tiny_copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tiny_copy / "image_encoder.onnx").write_bytes(b"\x08\x0a")
    tiny.reseal(tiny_copy)
    with pytest.raises(BundleError, match=r"`image_encoder\.onnx`"):
        open_session(Bundle.open(tiny_copy), "image_encoder", FP32)
    assert capfd.readouterr().err == ""


# --- profile, and a whole task


def test_a_profile_is_written_where_it_was_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    session = open_session(bundle, "caption_step", EngineOptions("openvino:CPU", 1, tmp_path))
    session.run(**step_inputs(2))
    path = session.end_profile()
    assert path.parent == tmp_path
    events = json.loads(path.read_text("utf-8"))
    assert events
    assert all(event["cat"] == "Node" and event["dur"] >= 0 for event in events)


def test_a_caption_is_the_same_on_both_engines(
    tiny_bundle_folder: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    for device in ("cpu", "openvino:CPU:fp32"):
        arguments = ["run", "caption", str(photographs / "a.jpg"), "--model", str(tiny_bundle_folder)]
        main([*arguments, "--device", device, "--beams", "3", "--threads", "1"])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].strip()


def test_the_captioner_that_comes_with_the_package_is_as_exported(capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", "flickr8k-captioner", "--device", "openvino:CPU:fp32"])
    said = capsys.readouterr().out
    assert "decode" in said
    assert said.rstrip().endswith("verified")


def test_a_run_imports_no_training_library_and_reports_to_nobody(tiny_bundle_folder: Path, photographs: Path) -> None:
    arguments = ["run", "caption", str(photographs / "a.jpg"), "--model", str(tiny_bundle_folder)]
    code = f"""
import sys
from vlrt.cli import main
main({[*arguments, "--device", "openvino:CPU"]!r})
assert "openvino" in sys.modules
assert not {{"torch", "onnx", "onnxruntime", "transformers"}} & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
import openvino_telemetry  # that others may have it
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def tensor(name: str, width: int = 16) -> TensorSpec:
    return TensorSpec(name, "float32", ("n", width))


def one_node_spec(external: tuple[str, ...] = ()) -> GraphSpec:
    return GraphSpec("graph.onnx", "fp32", (tensor("x"),), (tensor("y"),), external)


def one_node(node: onnx.NodeProto, weights: list[onnx.TensorProto] | None = None) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    x, y = (info(name, TensorProto.FLOAT, ["n", 16]) for name in ("x", "y"))
    graph = helper.make_graph([node], "graph", [x], [y], weights or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def attention_model(operator: str) -> onnx.ModelProto:
    flat, cache = ["rows", "width", 24], ["rows", 3, "positions", 8]
    shapes = {"query": flat, "key": flat, "value": flat, "past_key": cache, "past_value": cache}
    info = helper.make_tensor_value_info
    inputs = [info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inputs += [info("last", TensorProto.INT32, ["rows"]), info("longest", TensorProto.INT32, [1])]
    results = {"mixed": flat, "next_key": cache, "next_value": cache}
    outputs = [info(name, TensorProto.FLOAT, shape) for name, shape in results.items()]
    names = [i.name for i in inputs]
    node = helper.make_node(operator, names, list(results), domain="com.microsoft", num_heads=3, kv_num_heads=3)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "attention", inputs, outputs)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
