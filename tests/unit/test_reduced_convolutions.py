"""Convolutions as int8: close to fp32, really run so, and those that are kept really kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlrt.engines import EngineOptions
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.manifest import GraphSpec, TensorSpec
from vlrt_export.gate_speed import executed_kernels
from vlrt_export.reduced_convolutions import Restorable, convolution_sizes, convolutions, fold, quantise_convolutions
from vlrt_export.trial import Call

SPEC = GraphSpec(
    "net.onnx",
    "fp32",
    (TensorSpec("pixels", "float32", ("batch", 3, 16, 16)),),
    (TensorSpec("features", "float32", ("batch", 8, 16, 16)),),
)


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stem, a depthwise convolution whose channels differ a thousandfold, a projection with scale, and a residual."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("net")

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = random.standard_normal(shape) / np.sqrt(shape[1] * 9)
        return numpy_helper.from_array(values.astype(np.float32), name)

    deep = numpy_helper.to_array(weight("", 8, 1, 3, 3)) * np.logspace(-2, 1, 8, dtype=np.float32)[:, None, None, None]
    bounds = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("low", 0), ("high", 6))]
    nodes = [
        helper.make_node("Conv", ["pixels", "stem"], ["a"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"]),
        helper.make_node("Conv", ["b", "deep"], ["c"], "deep", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Clip", ["c", "low", "high"], ["d"]),
        helper.make_node("Conv", ["d", "project"], ["e"], "project"),
        helper.make_node("Mul", ["e", "scale"], ["f"]),
        helper.make_node("Conv", ["f", "last"], ["g"], "last"),
        helper.make_node("Add", ["f", "g"], ["features"]),
    ]
    weights = [weight("stem", 8, 3, 3, 3), numpy_helper.from_array(deep, "deep"), weight("project", 8, 8, 1, 1)]
    weights += [weight("last", 8, 8, 1, 1), weight("scale", 8, 1, 1), *bounds]
    values = [
        helper.make_tensor_value_info(t.name, TensorProto.FLOAT, list(t.shape)) for t in (*SPEC.inputs, *SPEC.outputs)
    ]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save_model(model, folder / "net.onnx")
    assert fold(folder / "net.onnx", folder / "folded.onnx")
    return folder / "folded.onnx"


def pixels(seed: int) -> dict[str, Any]:
    return {"pixels": np.random.default_rng(seed).standard_normal((1, 3, 16, 16)).astype(np.float32)}


def run(path: Path) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, pixels(99))[0]


def reduced(folded: Path, folder: Path, *kept: str) -> tuple[Path, dict[str, int]]:
    made = quantise_convolutions(folded, folder / "net.onnx", kept, [pixels(seed) for seed in range(8)])
    return folder / "net.onnx", made


def error(path: Path, folded: Path) -> float:
    expected = run(folded)
    return float(np.sqrt(np.square(run(path) - expected).mean()) / expected.std())


def test_the_layer_on_the_pixels_is_no_candidate(folded: Path) -> None:
    assert convolutions(folded) == ["deep", "project", "last"]
    assert convolution_sizes(folded) == {"stem": 216, "deep": 72, "project": 64, "last": 64}


def test_what_is_reduced_runs_reduced_and_stays_close(folded: Path, tmp_path: Path) -> None:
    path, made = reduced(folded, tmp_path)
    assert made == {"QLinearConv": 3}
    ran = executed_kernels((SPEC, path), Call(pixels(0)))
    assert ran["QLinearConv"] == 3
    assert ran["Conv"] + ran["FusedConv"] == 1
    assert 0 < error(path, folded) < 0.1


def test_a_kept_convolution_is_not_reduced_behind_our_back(folded: Path, tmp_path: Path) -> None:
    """The engine would give the depthwise one a single scale, which loses its small channels."""
    path, made = reduced(folded, tmp_path, "deep")
    assert made == {"QLinearConv": 2}
    ran = executed_kernels((SPEC, path), Call(pixels(0)))
    assert ran["QLinearConv"] == 2
    assert ran["Conv"] + ran["FusedConv"] == 2
    (tmp_path / "all").mkdir()
    assert error(path, folded) <= error(reduced(folded, tmp_path / "all")[0], folded) * 1.01


def test_what_a_convolution_costs_is_known_without_making_the_graph_again(folded: Path, tmp_path: Path) -> None:
    path, _ = reduced(folded, tmp_path)
    restorable, trial = Restorable(path, folded), tmp_path / "trial.onnx"

    def error_without(*names: str) -> float:
        restorable.write(names, trial)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(trial), options, providers=["CPUExecutionProvider"])
        expected = run(folded)
        return float(np.sqrt(np.square(session.run(None, pixels(99))[0] - expected).mean()) / expected.std())

    assert error_without() == pytest.approx(error(path, folded), rel=0.1)
    assert error_without("deep", "project", "last") < 1e-6
    (tmp_path / "kept").mkdir()
    kept, _ = reduced(folded, tmp_path / "kept", "project", "last")
    assert error_without("project", "last") == pytest.approx(error(kept, folded), rel=0.1)


def test_large_graphs_are_left(folded: Path, tmp_path: Path) -> None:
    graph = folded.parent / "net.onnx"
    (tmp_path / "net.onnx").write_bytes(graph.read_bytes())
    (tmp_path / "net.bin").write_bytes(b"")
    assert not fold(tmp_path / "net.onnx", tmp_path / "folded.onnx"), "its weights lie beside it"
    assert OnnxRuntimeSession(SPEC, graph, EngineOptions()).run(**pixels(0))["features"].shape == (1, 8, 16, 16)
