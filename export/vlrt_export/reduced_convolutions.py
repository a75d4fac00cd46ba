"""Convolutions as int8 with ranges found on photographs: quantise and dequantise nodes around them."""

from __future__ import annotations

import inspect
import logging
import math
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


def convolution_sizes(path: Path) -> dict[str, int]:
    """Elements of the kernels of every convolution of a graph by its name."""
    graph = onnx.load(path, load_external_data=False).graph
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    return {node.name: sizes.get(node.input[1], 0) for node in graph.node if node.op_type == "Conv"}


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


class Restorable:
    """A graph with int8 convolutions, of which some can be had as they were, without the tool's long work.

    It computes in fp32 with weights and tensors rounded as the int8 graph rounds them.

    Args:
        quantised: written by `quantise_convolutions`, nothing kept.
        folded: the graph that it was made of.
    """

    def __init__(self, quantised: Path, folded: Path) -> None:
        self._before, self._all = onnx.load(folded), frozenset(convolutions(folded))
        self._makers = {name: node for node in self._before.graph.node for name in node.output}
        model = onnx.load(quantised)
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        restoring = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
        self._weights = {
            node.name: self._restored(restoring[node.input[1]]) for node in model.graph.node if node.name in self._all
        }
        self._rounded = dict(self._roundings(model))

    def write(self, names: Collection[str], target: Path) -> None:
        """Writes the graph with the convolutions of those names in fp32, and what is between them and no others."""
        model, chosen = onnx.ModelProto(), self._all - set(names)
        model.CopyFrom(self._before)
        for node in model.graph.node:
            if node.name in chosen:
                weights = numpy_helper.from_array(self._weights[node.name], f"{node.input[1]}.rounded")
                model.graph.initializer.append(weights)
                node.input[1] = weights.name
        self._round(model.graph, chosen)
        onnx.save_model(model, target)

    def _round(self, graph: onnx.GraphProto, chosen: Collection[str]) -> None:
        """Rounds the tensors that chosen convolutions make or read."""
        read = {name for node in graph.node if node.name in chosen for name in node.input[:1]}
        wanted = {name for name in self._rounded if name in read or self._is_made_by(name, chosen)}
        nodes = []
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name in wanted:
                    node.input[place] = f"{name}.rounded"
            nodes.append(node)
            nodes += [made for name in node.output if name in wanted for made in self._rounding(name)]
        graph.initializer.extend(self._constants[used] for name in sorted(wanted) for used in self._rounded[name])
        del graph.node[:]
        graph.node.extend(nodes)

    def _rounding(self, name: str) -> list[onnx.NodeProto]:
        range_ = self._rounded[name]
        return [
            helper.make_node("QuantizeLinear", [name, *range_], [f"{name}.int8"], f"{name}.quantise"),
            helper.make_node("DequantizeLinear", [f"{name}.int8", *range_], [f"{name}.rounded"], f"{name}.restore"),
        ]

    def _is_made_by(self, tensor: str, chosen: Collection[str]) -> bool:
        maker = self._makers.get(tensor)
        return maker is not None and _belongs(maker, chosen, self._makers)

    def _restored(self, node: onnx.NodeProto) -> Any:
        values, scales = (numpy_helper.to_array(self._constants[name]) for name in node.input[:2])
        return values.astype(np.float32) * scales.reshape(-1, *[1] * (values.ndim - 1))

    def _roundings(self, model: onnx.ModelProto) -> Iterator[tuple[str, tuple[str, str]]]:
        """Scale and zero of every tensor that is rounded; rounding does the work of an activation that bounds it."""
        have = {node.name for node in model.graph.node}
        bounding = {
            node.input[0]: node.output[0]
            for node in self._before.graph.node
            if node.op_type in ("Clip", "Relu") and node.name not in have
        }
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear":
                yield bounding.get(node.input[0], node.input[0]), (node.input[1], node.input[2])


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
