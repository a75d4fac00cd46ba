"""Large graphs: weights in a file beside them, halved where that is exact, and mapped in the modules' place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from vlrt.engines import EngineOptions
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt_export import bundle_writer
from vlrt_export.external_data import weight_bytes
from vlrt_export.graph import Graph
from vlrt_export.modules.dense import Dense
from vlrt_export.parity import measure_graph


class Tied(torch.nn.Module):
    """A matrix of exact halves, another that is none, and one that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.halves, self.full = Dense(40, 40), Dense(40, 40)
        self.words = torch.nn.Embedding(60, 40)
        self.head = self.words
        with torch.no_grad():
            self.halves.weight.copy_(self.halves.weight.half().float())

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        return self.full(self.halves(self.words(token))) @ self.head.weight.t()


@pytest.fixture
def graph() -> Graph:
    torch.manual_seed(0)
    tokens = [torch.randint(60, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 5)]
    return Graph(
        role="step",
        module=Tied().eval().requires_grad_(False),
        inputs={"token": tokens[0]},
        outputs=("logits",),
        dynamic={"token": {0: "rows"}},
        output_axes={"logits": {0: "rows"}},
        cases=[{"token": tokens[1]}],
    )


class Opened:
    """What `measure_graph` needs of the sessions of a bundle."""

    def __init__(self, folder: Path, spec: bundle_writer.GraphSpec) -> None:
        self.session = OnnxRuntimeSession(spec, folder / spec.file, EngineOptions(threads=1))

    def get(self, role: str) -> OnnxRuntimeSession:
        return self.session


def test_a_large_graph_is_what_the_module_was(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    spec = bundle_writer.write_graph(graph, tmp_path)
    plain = (tmp_path / spec.file).stat().st_size
    assert not spec.external
    monkeypatch.setattr(bundle_writer, "EXTERNAL_ABOVE", 100)
    spec = bundle_writer.write_graph(graph, tmp_path)
    assert spec.external == ("step.bin",)
    assert spec.storage == "fp16"
    assert (tmp_path / spec.file).stat().st_size < plain / 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step.bin", "step.onnx"]
    lines = list(measure_graph(graph, Opened(tmp_path, spec)))  # type: ignore[arg-type]
    assert all(line.passed and line.value < 1e-5 for line in lines)
    graph.drop_weights()
    for name, tensor in graph.module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_only_what_fp16_holds_is_halved(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_writer, "EXTERNAL_ABOVE", 100)
    spec = bundle_writer.write_graph(graph, tmp_path)
    model = onnx.load(tmp_path / spec.file)
    kinds = {tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type) for tensor in model.graph.initializer}
    assert kinds["halves.weight.fp16"] == np.float16
    assert kinds["full.weight"] == np.float32
    size = (tmp_path / "step.bin").stat().st_size
    assert 4 * 40 * 40 + 2 * 40 * 40 + 4 * 60 * 40 <= size < 4 * 40 * 40 + 2 * 40 * 40 + 4 * 60 * 40 + 4 * 4096


def test_the_modules_weights_leave_memory(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_writer, "EXTERNAL_ABOVE", 100)
    own = graph.module.full.weight.data_ptr()
    bundle_writer.write_graph(graph, tmp_path)
    assert graph.module.full.weight.data_ptr() != own
    assert graph.module.head.weight is graph.module.words.weight
    assert len(graph.mapped) == 1


def test_shared_weights_count_once() -> None:
    assert weight_bytes(Tied()) == 4 * (2 * (40 * 40 + 40) + 60 * 40)
