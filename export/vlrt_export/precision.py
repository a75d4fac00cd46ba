"""Precision of a written graph: what is stored, and what is computed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

_SMALL = 1024
"""Vectors of fewer elements stay as they are: they save nothing and would each cost a node."""

_BLOCK = 1 << 20
"""Elements compared at once: matrices of large models are to be in memory as few times as can be."""


def store_exact_halves(model: onnx.ModelProto) -> bool:
    """Stores as fp16 what fp16 holds exactly; the graph casts it back, so its arithmetic and results are unchanged.

    Checkpoints are often published in fp16. Their matrices, widened for tracing, need not take twice the disk;
    the engine folds the casts away when it loads the graph.

    Returns:
        Whether anything was narrowed.
    """
    casts = []
    for tensor in model.graph.initializer:
        halves = exact_halves(numpy_helper.to_array(tensor)) if tensor.data_type == onnx.TensorProto.FLOAT else None
        if halves is not None:
            casts.append(cast_back(tensor.name))
            tensor.CopyFrom(numpy_helper.from_array(halves, casts[-1].input[0]))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    return bool(casts)


def exact_halves(values: NDArray[Any]) -> NDArray[np.float16] | None:
    """The same numbers as fp16, where they are fp32, not few, and fp16 holds every one of them."""
    if values.dtype != np.float32 or values.size < _SMALL:
        return None
    halves, flat = np.empty(values.size, np.float16), values.reshape(-1)
    for start in range(0, values.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        with np.errstate(over="ignore"):
            halves[start : start + _BLOCK] = block
        if not np.array_equal(halves[start : start + _BLOCK].astype(np.float32), block):
            return None
    return halves.reshape(values.shape)


def cast_back(name: str) -> onnx.NodeProto:
    """The node that gives what is stored as fp16 its name and type back."""
    return onnx.helper.make_node("Cast", [f"{name}.fp16"], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT)


class ChannelAffine(nn.Module):
    """Scale and shift per channel: what a batch norm computes in eval mode, [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            raise ValueError("a batch norm without running statistics cannot be traced")
        gamma = norm.weight if norm.weight is not None else torch.ones_like(mean)
        beta = norm.bias if norm.bias is not None else torch.zeros_like(mean)
        scale = gamma.double() / torch.sqrt(variance.double() + norm.eps)
        self.register_buffer("scale", scale.float()[:, None, None])
        self.register_buffer("shift", (beta.double() - mean.double() * scale).float()[:, None, None])
        self.scale: Tensor
        self.shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def keep_halves(module: nn.Module) -> nn.Module:
    """The module, or for convolutions with fp16 values a copy whose batch norms are plain scales and shifts.

    The tracer multiplies a batch norm into the convolution before it; the products are no longer exact in fp16 and
    would take twice the disk. Engines fold scale and shift when they load the graph, so nothing is lost.
    """
    convolutions = [m.weight for m in module.modules() if isinstance(m, nn.Conv2d)]
    has_norms = any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    if not has_norms or not all(torch.equal(weight, weight.half().float()) for weight in convolutions):
        return module
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, ChannelAffine(child))
    return module
