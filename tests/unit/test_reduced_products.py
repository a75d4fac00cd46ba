"""Graphs whose matrices were reduced, run by the engine, against NumPy with the restored integers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlrt_export.graph_weights import GraphWeights
from vlrt_export.precision import store_exact_halves
from vlrt_export.reduced_products import matrices, to_blocks, to_int8
from vlrt_export.reduced_storage import to_halves

VOCABULARY, WIDTH = 96, 64
REWRITES: dict[str, Callable[..., dict[str, int]]] = {"int8": to_int8, "blocks8": to_blocks(8), "blocks4": to_blocks(4)}
ERRORS = {"int8": 0.03, "blocks8": 0.03, "blocks4": 0.3}


def model(tied: bool = True) -> onnx.ModelProto:
    """ids [R, W] -> embedding -> Gemm-free block -> tied head, with every form that products come in."""
    random = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / WIDTH**0.5, name)

    weights = [weight("embedding", VOCABULARY, WIDTH), weight("up", WIDTH, 128), weight("up_bias", 128)]
    weights += [weight("down", WIDTH, 128), weight("down_bias", WIDTH), weight("head", VOCABULARY, WIDTH)]
    weights += [numpy_helper.from_array(np.array([-1, WIDTH], np.int64), "flat")]
    nodes = [
        helper.make_node("Gather", ["embedding", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "up"], ["wide"]),
        helper.make_node("Add", ["up_bias", "wide"], ["biased"]),
        helper.make_node("Tanh", ["biased"], ["active"]),
        helper.make_node("Transpose", ["down"], ["down_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["active", "down_t"], ["low"]),
        helper.make_node("Reshape", ["low", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "embedding" if tied else "head"], ["logits"], transB=1),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows", "width"])]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["tokens", VOCABULARY]),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "width", WIDTH]),
    ]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.array([[1, 2, 95], [0, 40, 7]])
    return dict(zip(("logits", "x"), session.run(["logits", "x"], {"ids": ids})))


def reduce(model: onnx.ModelProto, folder: Path, rewrite: Callable[..., dict[str, int]], *kept: str) -> Path:
    onnx.save_model(model, folder / "fp32.onnx")
    graph = GraphWeights(folder / "fp32.onnx", folder / "reduced.onnx")
    rewrite(graph, kept)
    assert graph.save() == ()
    return folder / "reduced.onnx"


def error(found: Any, expected: Any) -> float:
    return float(np.sqrt(np.square(found - expected).mean()) / expected.std())


@pytest.mark.parametrize("kind", REWRITES)
@pytest.mark.parametrize("tied", [True, False])
def test_results_stay_close(tmp_path: Path, kind: str, tied: bool) -> None:
    reduced = reduce(model(tied), tmp_path, REWRITES[kind])
    expected, found = run(tmp_path / "fp32.onnx"), run(reduced)
    for name in expected:
        assert 0 < error(found[name], expected[name]) < ERRORS[kind] or (name == "x" and not tied)
        assert found[name].shape == expected[name].shape


@pytest.mark.parametrize("kind", REWRITES)
def test_a_shared_matrix_is_stored_once(tmp_path: Path, kind: str) -> None:
    reduced = onnx.load(reduce(model(), tmp_path, REWRITES[kind]))
    tensors = reduced.graph.initializer
    integers = [t for t in tensors if t.data_type in (TensorProto.INT8, TensorProto.UINT8)]
    share = 2 if kind == "blocks4" else 1
    sizes = sorted(int(np.prod(tensor.dims)) * share for tensor in integers)
    assert sizes == [VOCABULARY * WIDTH, 128 * WIDTH]
    # `down` is transposed by a node, so it is left; no other matrix is there as floats too.
    floats = [t.name for t in reduced.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 512]
    assert floats == ["down"]


def test_named_parts_are_left_alone(tmp_path: Path) -> None:
    reduced = onnx.load(reduce(model(), tmp_path, to_int8, "up"))
    kinds = [node.op_type for node in reduced.graph.node]
    assert kinds.count("DynamicQuantizeMatMul") == 1
    assert "up" in {tensor.name for tensor in reduced.graph.initializer}
    assert matrices(GraphWeights(tmp_path / "fp32.onnx")) == ["up", "embedding"]


def test_keeping_a_shared_matrix_keeps_both_of_its_uses(tmp_path: Path) -> None:
    reduced = reduce(model(), tmp_path, to_int8, "up", "embedding")
    expected, found = run(tmp_path / "fp32.onnx"), run(reduced)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", REWRITES)
def test_what_was_stored_as_halves_is_reduced_too(tmp_path: Path, kind: str) -> None:
    halved = model()
    for tensor in halved.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))
    assert store_exact_halves(halved)
    reduced = reduce(halved, tmp_path, REWRITES[kind])
    assert error(run(reduced)["logits"], run(tmp_path / "fp32.onnx")["logits"]) < ERRORS[kind]
    assert not [t.name for t in onnx.load(reduced).graph.initializer if t.name == "up.fp16"]


def test_external_weights_stay_external(tmp_path: Path) -> None:
    onnx.save_model(
        model(), tmp_path / "fp32.onnx", save_as_external_data=True, location="fp32.bin", size_threshold=256
    )
    graph = GraphWeights(tmp_path / "fp32.onnx", tmp_path / "reduced.onnx")
    assert to_int8(graph) == {"DynamicQuantizeMatMul": 2}
    assert graph.save() == ("reduced.bin",)
    assert (tmp_path / "reduced.bin").stat().st_size < (tmp_path / "fp32.bin").stat().st_size
    assert error(run(tmp_path / "reduced.onnx")["logits"], run(tmp_path / "fp32.onnx")["logits"]) < 0.03


def test_halved_storage_computes_in_fp32(tmp_path: Path) -> None:
    reduced = reduce(model(), tmp_path, to_halves)
    assert reduced.stat().st_size < 0.6 * (tmp_path / "fp32.onnx").stat().st_size
    assert 0 < error(run(reduced)["logits"], run(tmp_path / "fp32.onnx")["logits"]) < 1e-3
