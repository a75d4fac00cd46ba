"""ONNX Runtime's in-place attention, and our torch twin of it, against plain NumPy: rows of different lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from vlrt_export.modules.attention_kv import (
    KeysValues,
    Places,
    cached_attention,
    cross_attention,
    last_tokens,
    memory_keys_values,
    padding_mask,
)

HEADS, DEPTH, POSITIONS = 3, 8, 16
Array = NDArray[Any]

CALLS = {
    "prompts of different lengths": [[1, 4, 2, 3], [1, 1, 1, 1], [1, 1, 1, 1]],
    "one token each from the start": [[1, 1], [1, 1], [1, 1]],
    "one row": [[5], [1], [1]],
    "one row goes on with several tokens": [[3], [4], [1]],
}


def make_session() -> Any:
    """A graph of nothing but the operator, made without torch."""
    flat = ["rows", "width", HEADS * DEPTH]
    cache = ["rows", HEADS, "positions", DEPTH]
    shapes = {"query": flat, "key": flat, "value": flat, "past_key": cache, "past_value": cache}
    info = onnx.helper.make_tensor_value_info
    inputs = [info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    inputs += [info("last", onnx.TensorProto.INT32, ["rows"]), info("longest", onnx.TensorProto.INT32, [1])]
    results = {"mixed": flat, "next_key": cache, "next_value": cache}
    outputs = [info(name, onnx.TensorProto.FLOAT, shape) for name, shape in results.items()]
    node = onnx.helper.make_node(
        "GroupQueryAttention",
        [i.name for i in inputs],
        list(results),
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=HEADS,
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph([node], "attention", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run_operator(session: Any, arrays: dict[str, Array]) -> Array:
    """Runs it with past and present in one buffer; the caches in `arrays` are extended in place."""
    mixed = np.zeros_like(arrays["query"])
    outputs = {"mixed": mixed, "next_key": arrays["past_key"], "next_value": arrays["past_value"]}
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    session.run_with_iobinding(binding)
    return mixed


def run_torch(arrays: dict[str, Array]) -> Array:
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    past = KeysValues(given["past_key"], given["past_value"])
    places = Places(given["last"], given["longest"])
    mixed, present = cached_attention(given["query"], given["key"], given["value"], past, places, HEADS)
    arrays["past_key"][:], arrays["past_value"][:] = present.keys.numpy(), present.values.numpy()
    return np.asarray(mixed.numpy())


def run_numpy(arrays: dict[str, Array], past: Array, new: Array) -> Array:
    """Each token by itself, over what stands before it in its row."""
    mixed = np.zeros_like(arrays["query"])
    keys, values = arrays["past_key"], arrays["past_value"]
    for row in range(len(new)):
        for i in range(int(new[row])):
            place = int(past[row]) + i
            keys[row, :, place] = arrays["key"][row, i].reshape(HEADS, DEPTH)
            values[row, :, place] = arrays["value"][row, i].reshape(HEADS, DEPTH)
            query = arrays["query"][row, i].reshape(HEADS, DEPTH)
            scores = np.einsum("hd,hsd->hs", query, keys[row, :, : place + 1]) / math.sqrt(DEPTH)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            mixed[row, i] = np.einsum("hs,hsd->hd", weights, values[row, :, : place + 1]).reshape(-1)
    return mixed


@pytest.mark.parametrize("unfilled", [0.0, math.nan], ids=["zeros", "not a number"])
@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("which", ["operator", "torch"])
def test_rows_of_different_lengths(which: str, calls: Sequence[Sequence[int]], unfilled: float) -> None:
    random, rows = np.random.default_rng(0), len(calls[0])
    session = make_session() if which == "operator" else None
    caches = [np.full((rows, HEADS, POSITIONS, DEPTH), unfilled, np.float32) for _ in range(4)]
    past = np.zeros(rows, np.int32)
    for lengths in calls:
        new = np.asarray(lengths, np.int32)
        total = past + new
        shape = (rows, int(new.max()), HEADS * DEPTH)
        arrays = {name: random.standard_normal(shape, np.float32) for name in ("query", "key", "value")}
        places = {"last": total - 1, "longest": total.max(keepdims=True)}
        expected_arrays = arrays | dict(zip(("past_key", "past_value"), caches[2:]))
        expected = run_numpy(expected_arrays, past, new)
        found_arrays = arrays | dict(zip(("past_key", "past_value"), caches[:2])) | places
        found = run_operator(session, found_arrays) if session else run_torch(found_arrays)
        for row in range(rows):
            np.testing.assert_allclose(found[row, : new[row]], expected[row, : new[row]], atol=1e-6)
            for ours, theirs in zip(caches[:2], caches[2:]):
                np.testing.assert_array_equal(ours[row, :, : total[row]], theirs[row, :, : total[row]])
        past = total


def test_several_rows_with_a_past_take_one_token_a_call() -> None:
    """A limit of the operator that the loop must keep to; were it lifted, this test would say so."""
    arrays = {name: np.zeros((2, 3, HEADS * DEPTH), np.float32) for name in ("query", "key", "value")}
    arrays |= {name: np.zeros((2, HEADS, POSITIONS, DEPTH), np.float32) for name in ("past_key", "past_value")}
    arrays |= {"last": np.full(2, 6, np.int32), "longest": np.array([7], np.int32)}
    with pytest.raises(Exception, match="batch_size must be 1"):
        run_operator(make_session(), arrays)


@pytest.mark.parametrize("beams", [1, 4])
def test_cross_attention_of_beams_equals_that_of_copies(beams: int) -> None:
    torch.manual_seed(0)
    images, width, length = 3, 2, 7
    query = torch.randn(images * beams, width, HEADS * DEPTH)
    keys, values = torch.randn(2, images, length, HEADS * DEPTH)
    present = torch.ones(images, length, dtype=torch.bool)
    present[1, 4:] = False
    mask = padding_mask(present)
    found = cross_attention(query, memory_keys_values(keys, values, HEADS), mask)
    for row in range(len(query)):
        kept = present[row // beams]
        q, k, v = (x.unflatten(-1, (HEADS, DEPTH)).transpose(0, 1) for x in (query[row], keys[row // beams, kept],
                   values[row // beams, kept]))  # fmt: skip
        expected = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(DEPTH), -1) @ v
        torch.testing.assert_close(found[row], expected.transpose(0, 1).flatten(1), atol=1e-6, rtol=1e-5)


def test_the_last_token_of_each_row() -> None:
    hidden = torch.arange(24.0).reshape(2, 3, 4)
    found = last_tokens(hidden, torch.tensor([1, 3], dtype=torch.int32))
    assert found.tolist() == [hidden[0, 0].tolist(), hidden[1, 2].tolist()]
