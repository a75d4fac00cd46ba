"""Precision of a written graph: what is stored, and what is computed."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

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
