"""Convolutions as int8 with ranges found on photographs: quantise and dequantise nodes around them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

KERNEL = "QLinearConv"
_TWO = "reduced.two"
_LARGEST = 1 << 30
"""Bytes of a graph that the engine's tool is given: it holds several copies of it."""


def convolutions(path: Path) -> list[str]:
    """Names of the convolutions of a graph as the engine's plain rewrites leave it, those on its inputs left out.

    The first layer of a network sees the picture itself, and of a transformer it is the only convolution: eight bits
    there cost most and save least.
    """
    model = onnx.load(path, load_external_data=False)
    inputs = {info.name for info in model.graph.input}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[0] not in inputs]


def fold(source: Path, target: Path) -> bool:
    """Writes the graph with its constants computed, and scales and shifts folded into its convolutions.

    The engine does that when it loads a graph; parts of a matrix that the graph cuts out of a larger one are
    matrices only after it.

    Returns:
        Whether it was written: large graphs are not.
    """
    if source.stat().st_size > _LARGEST or source.with_suffix(".bin").exists():
        return False
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return True


def quantise_convolutions(
    folded: Path, target: Path, kept: Collection[str], calls: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """Writes a folded graph with int8 convolutions and the additions between them.

    Args:
        folded: from `fold`.
        target: the new graph.
        kept: names of convolutions that stay as they are.
        calls: inputs of the graph by name, one photograph each, whose smallest and largest values are the ranges.

    Returns:
        How many nodes of the reduced kernel there are.

    Source: Jacob et al. (arXiv 1712.05877), by onnxruntime's ``quantize_static``; weights symmetric per channel.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
        def __init__(self) -> None:
            self.calls = iter(calls)

        def get_next(self) -> Any:
            return next(self.calls, None)

    left_out = _left_out(folded, kept)
    # Ranges do not depend on what is left out; newer versions of the tool keep them.
    keeps = "calibration_cache_path" in inspect.signature(quantize_static).parameters
    more: dict[str, Any] = {"calibration_cache_path": folded.with_suffix(".ranges.json")} if keeps else {}
    with _quiet():
        quantize_static(
            str(folded),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "Clip", "Relu", "Add"],
            nodes_to_exclude=left_out,
            **more,
        )
    _shield(target, left_out)
    return {KERNEL: len(set(convolutions(folded)) - set(left_out))}


def _shield(path: Path, kept: Collection[str]) -> None:
    """Doubles what reaches each kept convolution between reduced ones, and halves its weights.

    Where it finds a convolution with fp32 weights between quantised tensors, onnxruntime reduces it on its own
    (``WeightBiasQuantization``), with one scale for all channels; a product in between keeps it from that.
    """
    model = onnx.load(path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    nodes = []
    for node in model.graph.node:
        before = makers.get(node.input[0]) if node.input else None
        if node.op_type == "Conv" and node.name in kept and before is not None and node.input[1] in weights:
            halved = numpy_helper.to_array(weights[node.input[1]]) / 2
            model.graph.initializer.append(numpy_helper.from_array(halved, f"{node.name}.half"))
            nodes.append(helper.make_node("Mul", [node.input[0], _TWO], [f"{node.name}.double"], f"{node.name}.shield"))
            node.input[0], node.input[1] = f"{node.name}.double", f"{node.name}.half"
        nodes.append(node)
    if not any(node.output[0].endswith(".double") for node in nodes):
        return
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), _TWO))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save_model(model, path)


def _left_out(folded: Path, kept: Collection[str]) -> list[str]:
    """Nodes that stay: convolutions by wish or by place, and additions that do not stand between two of them."""
    model = onnx.load(folded, load_external_data=False)
    chosen = set(convolutions(folded)) - set(kept)
    makers = {name: node for node in model.graph.node for name in node.output}
    return [node.name for node in model.graph.node if not _belongs(node, chosen, makers)]


def _belongs(node: onnx.NodeProto, chosen: Collection[str], makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether what a node computes comes from chosen convolutions alone, with nothing between that is not served."""
    if node.op_type == "Conv":
        return node.name in chosen
    if node.op_type in ("Clip", "Relu"):
        before = makers.get(node.input[0])
        return before is not None and _belongs(before, chosen, makers)
    if node.op_type == "Add":
        return all(name in makers and _belongs(makers[name], chosen, makers) for name in node.input)
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """The tool advises on the root logger to do what `fold` has done."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
