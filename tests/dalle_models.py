"""DALL-E's golden models as their packages save them, and torch modules behind the runtime's session interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from vlrt.engines.session import Array, check_inputs, check_outputs
from vlrt.manifest import GraphSpec, TensorSpec
from vlrt_export.graph import Graph

GOLDEN = np.load(Path(__file__).parent / "golden" / "dalle.npz")
DESCRIBED = json.loads(GOLDEN["described"].tobytes())
TEXTS = torch.tensor(DESCRIBED["texts"])
NAMES = ("lucid/kinds", "lucid/turned", "lucid/reversed", "sber/v2", "sber/v3")


def golden(name: str, what: str) -> torch.Tensor:
    """An array of a golden model."""
    return torch.from_numpy(GOLDEN[f"{name}/{what}"])


def weights(name: str) -> dict[str, torch.Tensor]:
    """A golden model's state dict."""
    prefix = f"{name}/weights/"
    return {key.removeprefix(prefix): torch.from_numpy(GOLDEN[key]) for key in GOLDEN.files if key.startswith(prefix)}


def save(name: str, path: Path) -> Path:
    """A golden model's checkpoint, as its package saves it."""
    if name.startswith("sber"):
        torch.save(weights(name), path)
        return path
    given = DESCRIBED["lucid"][name.rpartition("/")[2]]
    hparams = given | {"attn_types": tuple(given["attn_types"])}
    beside = {"epoch": 3, "version": "1.6.6", "vae_class_name": "DiscreteVAE", "opt_state": {"state": {0: 1}}}
    torch.save({"hparams": hparams, "vae_params": DESCRIBED["vae"], **beside, "weights": weights(name)}, path)
    return path


class TorchSession:
    """Runs a graph's module on bound buffers, with the checks that every engine makes: the loop without tracing."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        with torch.no_grad():
            found = graph.module(*graph.inputs.values())
        given = [_spec(name, tensor, graph.dynamic.get(name, {})) for name, tensor in graph.inputs.items()]
        made = [_spec(name, tensor, graph.output_axes.get(name, {})) for name, tensor in zip(graph.outputs, found)]
        self.spec = GraphSpec(f"{graph.role}.onnx", "fp32", tuple(given), tuple(made))

    def run(self, **arrays: Array) -> dict[str, Array]:
        with torch.no_grad():
            found = self.graph.module(*(torch.from_numpy(arrays[name]) for name in self.graph.inputs))
        return {name: value.numpy() for name, value in zip(self.graph.outputs, found)}

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        check_outputs(self.spec, outputs, check_inputs(self.spec, inputs))

        def step() -> None:
            for name, value in self.run(**inputs).items():
                outputs[name][...] = value

        return step


def _spec(name: str, tensor: torch.Tensor, axes: Mapping[int, str]) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name, dtype, tuple(axes.get(axis, size) for axis, size in enumerate(tensor.shape)))
