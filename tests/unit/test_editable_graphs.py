"""Graphs read, edited and written without an ONNX library, and weights packed for our own kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.parser
import pytest

from vlrt.device_graph.model import Model
from vlrt.device_graph.packing import pack_bytes, pack_floats, sums_of_columns
from vlrt.device_graph.shape_rules import infer

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>\ng'


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("inner", "columns"), [(3, 16), (8, 5), (7, 1050)])
def test_packed_floats(inner: int, columns: int, transposed: bool) -> None:
    weight = np.random.default_rng(0).standard_normal((inner, columns)).astype(np.float32)
    packed = pack_floats("w", weight.T if transposed else weight, transposed)
    values = np.concatenate([np.frombuffer(block, np.float32) for block in packed.blocks()]).reshape(packed.dims)
    padded = np.zeros((inner, packed.dims[0] * 16), np.float32)
    padded[:, :columns] = weight
    assert np.array_equal(values, padded.reshape(inner, -1, 16).transpose(1, 0, 2))


@pytest.mark.parametrize(("inner", "columns"), [(4, 16), (9, 5), (6, 1050)])
def test_packed_bytes(inner: int, columns: int) -> None:
    weight = np.random.default_rng(0).integers(-128, 128, (inner, columns)).astype(np.int8)
    packed = pack_bytes("w", weight)
    values = np.concatenate([np.frombuffer(block, np.int8) for block in packed.blocks()]).reshape(packed.dims)
    for row in range(packed.dims[1] * 4):
        for column in range(packed.dims[0] * 16):
            expected = weight[row, column] if row < inner and column < columns else 0
            assert values[column // 16, row // 4, column % 16, row % 4] == expected
    assert np.array_equal(sums_of_columns(weight), weight.astype(np.int64).sum(0))


def test_models_are_carried_along(tmp_path: Path) -> None:
    """What is not understood stays: an operator of nobody's, a graph within a node, metadata, text in fp16."""
    branches = [
        onnx.helper.make_graph([onnx.helper.make_node(kind, ["x"], [kind])], kind, [], [onnx.ValueInfoProto(name=kind)])
        for kind in ("Abs", "Neg")
    ]
    nodes = [
        onnx.helper.make_node("Anything", ["h"], ["x"], domain="nobody", ints=[-1, 2], text="a", ratio=0.5, many=["b"]),
        onnx.helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    tensors = [
        onnx.numpy_helper.from_array(np.arange(3, dtype=np.float16), "h"),
        onnx.numpy_helper.from_array(np.arange(999, dtype=np.float32), "unused"),
    ]
    values = [onnx.helper.make_tensor_value_info(name, 1, ["n"]) for name in ("c", "y", "x")]
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:2], tensors, value_info=values[2:])
    model = onnx.helper.make_model(graph, producer_name="somebody")
    onnx.save(model, tmp_path / "a.onnx")
    read = Model(tmp_path / "a.onnx")
    assert read.sole_reader("x") is None, "both branches read it"
    read.remove_unused()
    read.write(tmp_path / "b.onnx", tmp_path / "b.bin")
    found = onnx.load(tmp_path / "b.onnx")
    assert [entry.domain for entry in found.opset_import] == ["", "vlrt"]
    del found.opset_import[1], model.graph.initializer[1]
    assert found == model


def test_weights_outside_are_read_where_they_lie(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)
    model = onnx.parser.parse_model(f"{HEAD} (float[n,40] x) => (float[n,40] y) {{ y = MatMul(x, w) }}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
    read = Model(tmp_path / "a.onnx")
    assert np.array_equal(read.constant("w"), weight)
    (tmp_path / "b").mkdir()
    read.write(tmp_path / "b" / "b.onnx", tmp_path / "b" / "b.bin")
    again = onnx.load(tmp_path / "b" / "b.onnx", load_external_data=False).graph.initializer[0]
    assert {entry.key: entry.value for entry in again.external_data}["offset"] == "0"
    assert np.array_equal(onnx.numpy_helper.to_array(onnx.load(tmp_path / "b" / "b.onnx").graph.initializer[0]), weight)
    with open(tmp_path / "a.bin", "r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ValueError, match=r"goes beyond `a\.bin`"):
        Model(tmp_path / "a.onnx")


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("y = Reshape(x, to)", ("batch·length", 4, 2)),
        ("s = Shape(x) g = Gather(s, zero) c = Concat<axis=0>(g, rest) y = Reshape(x, c)", ("batch", "length", 2, 4)),
        ("s = Shape<start=1, end=2>(x) e = Slice(table, zero, s, zero) y = Add(x, e)", ("batch", "length", 8)),
        ("a, b = Split<axis=2, num_outputs=2>(x) y = Concat<axis=2>(a, b)", ("batch", "length", 8)),
        ("u = Unsqueeze(x, zero) y = Squeeze(u)", None),
        ("u = Unsqueeze(x, zero) y = Squeeze(u, zero)", ("batch", "length", 8)),
        ("y = Gather(x, zero)", (1, "length", 8)),
    ],
)
def test_shapes_are_followed(body: str, shape: tuple[int | str, ...] | None, tmp_path: Path) -> None:
    constants = "int64[3] to = {-1, 4, 2}, int64[1] zero = {0}, int64[3] rest = {-1, 2, 4}"
    text = f"{HEAD} (float[batch,length,8] x) => (float y) <{constants}> {{ {body} }}"
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((77, 8), np.float32), "table"))
    onnx.save(model, tmp_path / "a.onnx")
    assert infer(Model(tmp_path / "a.onnx")).get("y") == shape


@pytest.mark.parametrize("content", [b"", b"\x3a\x05ab", b"\x3a\x04\x2a\x02\x08\xff", b"PK\x03\x04"])
def test_damaged_files_are_no_graphs(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    if not content:
        assert not Model(tmp_path / "a.onnx").nodes
        return
    with pytest.raises(ValueError, match=r"message|groups|number"):
        Model(tmp_path / "a.onnx")
