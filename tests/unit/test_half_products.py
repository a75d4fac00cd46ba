"""Products in fp16, the rest in fp32: which tensors change, and that weights others share keep working."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlrt.errors import EngineError, VlrtError
from vlrt.manifest import GraphSpec, TensorSpec
from vlrt_export.cuda_bundle import _halve
from vlrt_export.half_products import compute_products_in_halves
from vlrt_export.portable_attention import make_portable
from vlrt_export.tensorrt import refuse_unserved

DRAW = np.random.default_rng(0)
TABLE = DRAW.standard_normal((40, 32)).astype(np.float32)
MIX = (DRAW.standard_normal((32, 32)) / 6).astype(np.float32)


def model() -> onnx.ModelProto:
    """A tied table: words are looked up in it, mixed, normed, and scored against it; sizes are multiplied too."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "mix"], ["y"]),
        helper.make_node("MatMul", ["y", "mix"], ["z"]),
        helper.make_node("Mul", ["z", "huge"], ["w"]),
        helper.make_node("ReduceMax", ["w"], ["top"], keepdims=1),
        helper.make_node("Div", ["w", "top"], ["normed"]),
        helper.make_node("Gemm", ["normed", "table"], ["scores"], transB=1),
        helper.make_node("Shape", ["ids"], ["size"]),
        helper.make_node("MatMul", ["size", "ones"], ["count"]),
    ]
    weights = {
        "table": TABLE,
        "mix": MIX,
        "huge": np.array([1e6], np.float32),
        "ones": np.ones((1,), np.int64),
    }
    graph = helper.make_graph(
        nodes,
        "tied",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["rows"])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows", 40]),
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(given: onnx.ModelProto | Path) -> list[np.ndarray]:
    source = str(given) if isinstance(given, Path) else given.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": np.array([3, 0, 39])})  # type: ignore[no-any-return]


def test_products_take_halves_and_the_rest_keeps_its_range() -> None:
    """A factor of a million, which fp16 has not, goes through what is no product."""
    changed = model()
    compute_products_in_halves(changed)
    onnx.checker.check_model(changed)
    kinds = {tensor.name: tensor.data_type for tensor in changed.graph.initializer}
    assert kinds == {
        "table.half": TensorProto.FLOAT16,
        "mix.half": TensorProto.FLOAT16,
        "huge": TensorProto.FLOAT,
        "ones": TensorProto.INT64,
    }
    (scores, count), (expected, expected_count) = run(changed), run(model())
    np.testing.assert_allclose(scores, expected, atol=0.02)
    assert (scores != expected).any()
    assert count == expected_count


def test_neighbouring_products_pass_halves_on() -> None:
    changed = model()
    compute_products_in_halves(changed)
    products = [node for node in changed.graph.node if node.op_type == "MatMul"]
    assert products[1].input[0] == products[0].output[0]
    casts = [node.output[0] for node in changed.graph.node if node.op_type == "Cast"]
    assert casts == ["table", "x.half", "z", "normed.half", "scores"]  # none for what nobody reads in fp32


def test_graphs_with_weights_beside_them_stay_so(tmp_path: Path) -> None:
    onnx.save_model(
        model(), tmp_path / "tied.onnx", save_as_external_data=True, location="tied.bin", size_threshold=1024
    )
    before = (tmp_path / "tied.bin").stat().st_size
    expected = run(tmp_path / "tied.onnx")
    scores = TensorSpec("scores", "float32", ("rows", 40)), TensorSpec("count", "int64", ())
    spec = GraphSpec("tied.onnx", "fp32", (TensorSpec("ids", "int64", ("rows",)),), scores, external=("tied.bin",))
    changed = _halve(tmp_path, spec)
    assert (changed.precision, changed.external) == ("fp16", ("tied.bin",))
    assert (tmp_path / "tied.bin").stat().st_size <= before / 2
    np.testing.assert_allclose(run(tmp_path / "tied.onnx")[0], expected[0], atol=0.02)


# --- what other engines cannot read


def attention(*more: str, **attributes: int) -> onnx.ModelProto:
    floats = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in {"q": [1, 1, 4], "past": [1, 2, 3, 2], "bias": [1, 2, 1, 3]}.items()
    ]
    whole = [helper.make_tensor_value_info(name, TensorProto.INT32, [1]) for name in ("last", "total")]
    inputs = ["q", "q", "q", "past", "past", "last", "total", *more]
    node = helper.make_node("GroupQueryAttention", inputs, ["y", "k", "v"], domain="com.microsoft", **attributes)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4])]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "g", [*floats, *whole], outputs), opset_imports=opsets)


def test_attention_that_has_no_portable_form_is_named() -> None:
    assert {node.domain for node in make_portable(attention(num_heads=2, kv_num_heads=2)).graph.node} == {""}
    with pytest.raises(VlrtError, match="is used with bias, which has no portable form"):
        make_portable(attention("", "", "", "bias", num_heads=2, kv_num_heads=2))
    with pytest.raises(VlrtError, match="do_rotary"):
        make_portable(attention(num_heads=2, kv_num_heads=2, do_rotary=1))


def test_operators_that_tensorrt_cannot_read_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft"),
        helper.make_node("GroupQueryAttention", ["y"], ["z"], domain="com.microsoft"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "z")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:])), tmp_path / "g.onnx")
    with pytest.raises(EngineError, match=r"`g\.onnx` has `MatMulNBits`, ONNX Runtime's own") as caught:
        refuse_unserved(tmp_path / "g.onnx")
    assert "fp32" in caught.value.hint
