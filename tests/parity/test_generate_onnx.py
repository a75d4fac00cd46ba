"""In-place caches on ONNX Runtime: past and present bound to the same buffer, against attention in plain NumPy.

And the same with everything that lives between steps in the memory of a device.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from vlrt.decode import DecodeOptions, Loop, LoopShape, RowTensor, StepBuffers, StepModel, Task, decode, generate
from vlrt.engines import EngineOptions
from vlrt.engines.cuda import CudaSession
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.engines.tensorrt import TensorRtSession
from vlrt.engines.tensorrt_store import AxisRange, Machine
from vlrt.manifest import DecodeSpec, GraphSpec, StateSpec, TensorSpec
from vlrt_export.tensorrt import _Build

VOCABULARY, WIDTH, HEADS, LENGTH, END = 50, 16, 2, 24, 1
HEAD = WIDTH // HEADS
rng = np.random.default_rng(3)
WEIGHTS: dict[str, NDArray[np.float32]] = {
    "embedding": rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32),
    "places": (rng.standard_normal((LENGTH, WIDTH)) * 0.5).astype(np.float32),
    "query": (rng.standard_normal((WIDTH, WIDTH)) * 0.5).astype(np.float32),
    "key": (rng.standard_normal((WIDTH, WIDTH)) * 0.5).astype(np.float32),
    "value": (rng.standard_normal((WIDTH, WIDTH)) * 0.5).astype(np.float32),
    "output": rng.standard_normal((WIDTH, VOCABULARY)).astype(np.float32),
}


def tensors() -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    cache = ("rows", HEADS, "positions", HEAD)
    inputs = (
        TensorSpec("token", "int64", ("rows", "width")),
        TensorSpec("position", "int64", ("rows", "width")),
        TensorSpec("new_length", "int32", ("rows",)),
        TensorSpec("last_position", "int32", ("rows",)),
        TensorSpec("total_length", "int32", (1,)),
        TensorSpec("past_key", "float32", cache),
        TensorSpec("past_value", "float32", cache),
    )
    outputs = (
        TensorSpec("logits", "float32", ("rows", VOCABULARY)),
        TensorSpec("present_key", "float32", cache),
        TensorSpec("present_value", "float32", cache),
    )
    return inputs, outputs


def write_graph(path: Path) -> None:
    """Embedding, one layer of GroupQueryAttention over in-place caches, logits of each row's last token."""
    node, helper = onnx.helper.make_node, onnx.helper
    kinds = {"int64": onnx.TensorProto.INT64, "int32": onnx.TensorProto.INT32, "float32": onnx.TensorProto.FLOAT}
    attended = ["q", "k", "v", "past_key", "past_value", "last_position", "total_length"]
    nodes = [
        node("Gather", ["embedding", "token"], ["words"]),
        node("Gather", ["places", "position"], ["where"]),
        node("Add", ["words", "where"], ["x"]),
        *(node("MatMul", ["x", name], [name[0]]) for name in ("query", "key", "value")),
        node(
            "GroupQueryAttention",
            attended,
            ["attention", "present_key", "present_value"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
        ),
        node("Add", ["x", "attention"], ["y"]),
        node("Cast", ["new_length"], ["count"], to=onnx.TensorProto.INT64),
        node("Sub", ["count", "one"], ["last"]),
        node("Unsqueeze", ["last", "one"], ["last_index"]),
        node("GatherND", ["y", "last_index"], ["last_y"], batch_dims=1),
        node("MatMul", ["last_y", "output"], ["logits"]),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(t.name, kinds[t.dtype], t.shape) for t in side] for side in tensors()
    )
    constants = [onnx.numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()]
    constants.append(onnx.numpy_helper.from_array(np.array([1], np.int64), "one"))
    graph = helper.make_graph(nodes, "step", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


STATES = (StateSpec("kv", "past_key", "present_key"), StateSpec("kv", "past_value", "present_value"))
SPEC = DecodeSpec(("none",), "step", VOCABULARY, (0,), (END,), 0, STATES, LENGTH)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntimeSession:
    path = tmp_path_factory.mktemp("step") / "step.onnx"
    write_graph(path)
    inputs, outputs = tensors()
    return OnnxRuntimeSession(GraphSpec(path.name, "fp32", inputs, outputs), path, EngineOptions(threads=1))


@pytest.fixture(scope="module")
def model(session: OnnxRuntimeSession) -> StepModel:
    return StepModel(SPEC, session)


def attention_in_numpy(step: StepBuffers) -> None:
    """The same layer without a cache: every token's history is kept as ids and read again from the start."""
    ids = step.caches["ids"][:, 0, :, 0]
    for row in range(step.rows):
        past, new = int(step.past_lengths[row]), int(step.new_lengths[row])
        ids[row, past : past + new] = step.tokens[row, :new]
        length = past + new
        x = WEIGHTS["embedding"][ids[row, :length]] + WEIGHTS["places"][:length]
        q, k, v = ((x @ WEIGHTS[n]).reshape(length, HEADS, HEAD) for n in ("query", "key", "value"))
        scores = np.einsum("hd,shd->hs", q[-1], k) / math.sqrt(HEAD)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        step.logits[row] = (x[-1] + np.einsum("hs,shd->hd", weights, v).reshape(-1)) @ WEIGHTS["output"]


@pytest.mark.parametrize(
    "prompts", [[[0]], [[0, 5, 6]] * 3, [[4], [0, 9, 8, 7], [3, 2]]], ids=["one", "equal", "ragged"]
)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_caches_in_place(model: StepModel, prompts: list[list[int]], num_beams: int) -> None:
    options = DecodeOptions(num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=16)
    rows, width = len(prompts) * num_beams, max(map(len, prompts))
    ids = RowTensor("ids", (1, LENGTH, 1), "int32")
    loop = Loop(LoopShape(VOCABULARY, len(prompts), rows, 16, max(width, 2), caches=(ids,)))
    expected = decode(loop, attention_in_numpy, Task(prompts, (END,)), options)
    found = generate(model, {}, options, prompts=prompts)
    for ours, theirs in zip(found, expected):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)


# --- on a device


class Elsewhere(CudaSession):
    """Like an engine that cannot write where it reads (TensorRT)."""

    in_place = False


@pytest.mark.parametrize("kind", [CudaSession, Elsewhere])
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("prompts", [[[0]], [[4], [0, 9, 8, 7], [3, 2]]], ids=["one", "ragged"])
def test_caches_on_a_device(
    session: OnnxRuntimeSession,
    model: StepModel,
    fake_device: ModuleType,
    prompts: list[list[int]],
    num_beams: int,
    kind: type[CudaSession],
) -> None:
    """Twice with one model, since what the first run left in the caches is not to be seen by the second."""
    options = DecodeOptions(num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=16)
    expected = generate(model, {}, options, prompts=prompts)
    memory = fake_device.FakeMemory()
    there = StepModel(SPEC, kind(fake_device.session_on(session, memory), memory, onnxruntime, captures=False))
    for _ in range(2):
        found = generate(there, {}, options, prompts=prompts)
        assert [[h.tokens for h in image] for image in found] == [[h.tokens for h in image] for image in expected]
        assert [[h.score for h in image] for image in found] == [[h.score for h in image] for image in expected]


def test_only_tokens_and_logits_cross(
    session: OnnxRuntimeSession, fake_device: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, crossing = fake_device.FakeMemory(), []
    placed = fake_device.session_on(session, memory)
    bind = placed.bind_placed

    def noting(inputs: dict[str, object], outputs: dict[str, object], *more: object) -> object:
        crossing.append((fake_device.on_host(inputs), fake_device.on_host(outputs)))
        return bind(inputs, outputs, *more)

    monkeypatch.setattr(placed, "bind_placed", noting)
    there = StepModel(SPEC, CudaSession(placed, memory, onnxruntime, captures=False))
    generate(there, {}, DecodeOptions(num_beams=4, max_new_tokens=12), prompts=[[0, 5]])
    small = {"token", "position", "new_length", "last_position", "total_length"}
    assert crossing == [(small, {"logits"})] * 2  # the prompt, and then every step with the same binding
    assert memory.sent == memory.fetched == []
    assert memory.copied
    assert {(block.planes, block.lines) for block in memory.copied} == {(2, HEADS)}
    assert [block.width for block in memory.copied] == sorted(block.width for block in memory.copied)
    assert memory.copied[0].width == 2 * HEAD * 4  # no more than the prompt's two positions of each head


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("prompts", [[[0, 5]], [[4], [0, 9, 8, 7], [3, 2]]], ids=["one", "ragged"])
def test_the_portable_form_on_tensorrt(
    session: OnnxRuntimeSession,
    model: StepModel,
    fake_device: ModuleType,
    fake_tensorrt: ModuleType,
    tmp_path: Path,
    prompts: list[list[int]],
    num_beams: int,
) -> None:
    """Attention written out in plain ONNX decodes the same, although its caches are new tensors after every step."""
    write_graph(tmp_path / session.spec.file)
    ranges = {"rows": AxisRange(1, 4, 12), "width": AxisRange(1, 1, 4), "positions": AxisRange(1, LENGTH, LENGTH)}
    build = _Build(fake_tensorrt, Machine("Made Up", "9.0", "10.16"), session.spec, lambda line: None)
    plan = build.build(tmp_path / session.spec.file, [ranges])
    there = TensorRtSession(session.spec, plan, fake_device.FakeMemory(), fake_tensorrt)
    options = DecodeOptions(num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=16)
    expected = generate(model, {}, options, prompts=prompts)
    found = generate(StepModel(SPEC, there), {}, options, prompts=prompts)
    for ours, theirs in zip(found, expected):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)
