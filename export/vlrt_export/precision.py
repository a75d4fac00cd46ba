"""Precision of a written graph: what is stored, and what is computed."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

_SMALL = 1024
"""Vectors of fewer elements stay as they are: they save nothing and would each cost a node."""


def store_exact_halves(model: onnx.ModelProto) -> bool:
    """Stores as fp16 what fp16 holds exactly; the graph casts it back, so its arithmetic and results are unchanged.

    Checkpoints are often published in fp16. Their matrices, widened for tracing, need not take twice the disk;
    the engine folds the casts away when it loads the graph.

    Returns:
        Whether anything was narrowed.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _SMALL:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(halves, f"{name}.fp16"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.fp16"], [name], f"{name}.cast", to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    return bool(casts)


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
