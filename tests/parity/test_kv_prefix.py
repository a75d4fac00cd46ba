"""An image's prefix before the words, and biases by distance: against plain recomputation, and as written graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vlrt.engines import EngineOptions
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt_export import kv_graphs
from vlrt_export.bundle_writer import write_graph
from vlrt_export.kv_graphs import Prefix
from vlrt_export.modules.attention_kv import KeysValues, Places, cached_attention, place_prefix
from vlrt_export.modules.opt import Opt, OptSizes


@pytest.mark.parametrize("beams", [1, 3])
def test_a_prefix_stands_where_positions_are_below_its_length(beams: int) -> None:
    torch.manual_seed(0)
    words, prefix = torch.randn(2 * beams, 4, 5), torch.randn(2, 3, 5)
    position = torch.tensor([[0, 1, 2, 3], [7, 2, 9, 0]]).repeat_interleave(beams, 0)
    found = place_prefix(words, prefix, position)
    for row in range(2 * beams):
        for column in range(4):
            place = int(position[row, column])
            expected = prefix[row // beams, place] if place < 3 else words[row, column]
            assert torch.equal(found[row, column], expected)


def test_a_bias_by_distance_is_added_to_the_scores() -> None:
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 1, 4)
    past = KeysValues(torch.randn(2, 1, 6, 4), torch.randn(2, 1, 6, 4))
    bias = torch.randn(2, 1, 1, 4)
    places = Places(torch.tensor([3, 1], dtype=torch.int32), torch.tensor([4], dtype=torch.int32), bias)
    mixed, present = cached_attention(query, key, value, past, places, 1, scale=1.0)
    for row, last in enumerate((3, 1)):
        scores = query[row] @ present.keys[row, 0, : last + 1].T + bias[row, 0, :, : last + 1]
        torch.testing.assert_close(mixed[row], scores.softmax(-1) @ present.values[row, 0, : last + 1])


def test_the_prefix_of_a_written_graph_decides_its_logits(tmp_path: Path) -> None:
    torch.manual_seed(2)
    decoder = Opt(OptSizes(30, 20, 16, 1, 2, 16)).eval()
    graph = kv_graphs.step_graph(decoder, None, 1e-4, Prefix("prefix", 2, 16))
    session = OnnxRuntimeSession(
        write_graph(graph, tmp_path), tmp_path / f"{graph.role}.onnx", EngineOptions(threads=1)
    )
    case = {name: tensor.numpy() for name, tensor in graph.cases[1].items()}
    logits = session.run(**case)["logits"]
    placeholder = case | {"token": np.where(case["position"] < 2, 7, case["token"])}
    np.testing.assert_array_equal(session.run(**placeholder)["logits"], logits)
    other = case | {"prefix": case["prefix"][::-1].copy()}
    assert np.abs(session.run(**other)["logits"] - logits).max() > 1e-3
