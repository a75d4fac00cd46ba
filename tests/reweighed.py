"""An exported bundle's graphs with the weights of another model of the same shape: many seeds for one trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vlrt.bundle import Bundle
from vlrt.decode import StepModel
from vlrt.engines import EngineOptions
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.engines.prepared import open_file
from vlrt.manifest import Manifest
from vlrt_export.graph import Graph, Plan

Array = NDArray[Any]


class Reweighed:
    """Runs the graphs of a bundle in `folder` with the weights of `plan`, which must be of the same shapes.

    Graphs of the roles `kept` stay as they are.
    """

    def __init__(self, folder: Path, plan: Plan, target: Path, kept: Iterable[str] = ()) -> None:
        self.manifest: Manifest = Bundle.open(folder).manifest
        self.sessions: dict[str, OnnxRuntimeSession] = {}
        for graph in plan.graphs:
            spec = self.manifest.graphs[graph.role]
            if graph.role in kept:
                self.sessions[graph.role] = open_file(spec, folder / spec.file, EngineOptions(threads=1))
                continue
            path = target / spec.file
            onnx.save_model(replace_weights(onnx.load(folder / spec.file), graph), path)
            self.sessions[graph.role] = open_file(spec, path, EngineOptions(threads=1))

    def run_chain(self, roles: Iterable[str], arrays: Mapping[str, Array]) -> dict[str, Array]:
        known, produced = dict(arrays), {}
        for role in roles:
            session = self.sessions[role]
            found = session.run(**{t.name: known[t.name] for t in session.spec.inputs})
            known, produced = known | found, produced | found
        return produced

    def step(self) -> StepModel:
        assert self.manifest.decode is not None
        return StepModel(self.manifest.decode, self.sessions[self.manifest.decode.step])


def replace_weights(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """Puts the parameters of a graph's module in the place of the model's own, by their names."""
    weights = graph.module.state_dict()
    replaced = 0
    for tensor in model.graph.initializer:
        if tensor.name not in weights:
            # Shapes, tables of indices, and scales of attention; whatever is larger would be weights not replaced.
            small = np.prod(tensor.dims) <= 4 or tensor.data_type == onnx.TensorProto.INT64
            assert small or _is_buffer(tensor, graph), f"`{tensor.name}` {tensor.dims} is no parameter of {graph.role}"
            continue
        value = weights[tensor.name].numpy()
        assert list(value.shape) == list(tensor.dims)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
        replaced += 1
    assert replaced, f"{graph.role} has no weights by name"
    return model


def _is_buffer(tensor: onnx.TensorProto, graph: Graph) -> bool:
    """Whether it is a table that the module computes from its sizes, whatever its weights are."""
    value = numpy_helper.to_array(tensor)
    return any(np.array_equal(value, buffer.numpy()) for buffer in graph.module.buffers())
