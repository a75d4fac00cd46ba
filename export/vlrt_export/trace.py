"""Tracing a `Graph` to ONNX, and the clean-up after it."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch

from vlrt.errors import VlrtError
from vlrt_export.graph import Graph
from vlrt_export.precision import keep_halves

OPSET = 21
"""Of the standard domain: the newest that every execution provider of interest takes."""


def trace(graph: Graph) -> onnx.ModelProto:
    """Traces a graph with `torch.onnx.export(dynamo=True)`.

    Returns:
        The model with named axes, without the tracer's notes about source files and without stale shapes.

    Raises:
        VlrtError: torch cannot trace the module.
    """
    with _quiet():
        return _tidy(_program(graph).model_proto, graph)


def trace_large(graph: Graph, folder: Path) -> onnx.ModelProto:
    """As `trace`, with the weights in the file ``weights`` of `folder`: they are in memory in the module alone."""
    with _quiet():
        file = folder / "graph"
        onnx_ir.save(_program(graph).model, file, "protobuf", external_data="weights", max_workers=1)
        return _tidy(onnx.load(file, load_external_data=False), graph)


def _program(graph: Graph) -> torch.onnx.ONNXProgram:
    with torch.no_grad():
        try:
            program = torch.onnx.export(
                keep_halves(graph.module),
                tuple(graph.inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=_dynamic_shapes(graph),
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise VlrtError(f"graph `{graph.role}` cannot be traced: {reason}", "report this with the model") from error
    if program is None:
        raise VlrtError(f"graph `{graph.role}` was traced to nothing", "report this with the model")
    return program


def _dynamic_shapes(graph: Graph) -> tuple[Any, ...]:
    """Axes by input; those of a variable argument are one entry, as torch wants it."""
    known: dict[str, Any] = {}
    axes = [graph.dynamic.get(name, {}) for name in graph.inputs]
    shapes = [{axis: _dimension(name, known) for axis, name in named.items()} or None for named in axes]
    kinds = [p.kind for p in inspect.signature(graph.module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    plain = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    if len(shapes) == plain:
        return tuple(shapes)
    return (*shapes[:plain], tuple(shapes[plain:]))


def _dimension(name: str, known: dict[str, Any]) -> Any:
    """An axis by its name; ``8*height`` is one whose size is a multiple of 8, for models that halve it thrice."""
    factor, star, base = name.rpartition("*")
    if not star:
        return name
    return int(factor) * known.setdefault(base, torch.export.Dim(base))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tracer prints progress and warns of libraries it does not need; neither is for our users."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _tidy(model: onnx.ModelProto, graph: Graph) -> onnx.ModelProto:
    """Removes stack traces (they name the exporting machine's folders) and intermediate shapes, names output axes."""
    model.producer_name, model.producer_version, model.doc_string = "vlrt", "", ""
    body = model.graph
    body.name, body.doc_string = graph.role, ""
    del model.metadata_props[:]
    del body.metadata_props[:]
    del body.value_info[:]
    for node in body.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for info in (*body.input, *body.output, *body.initializer):
        info.doc_string = ""
        if hasattr(info, "metadata_props"):
            del info.metadata_props[:]
    for output in body.output:
        _name_axes(output, graph.output_axes.get(output.name, {}))
    return model


def _name_axes(info: onnx.ValueInfoProto, names: Mapping[int, str]) -> None:
    for axis, dimension in enumerate(info.type.tensor_type.shape.dim):
        if axis in names:
            dimension.Clear()
            dimension.dim_param = names[axis]


def signature(info: onnx.ValueInfoProto) -> tuple[str, tuple[int | str, ...]]:
    """Dtype name and shape of a graph input or output; an axis without size or name is an error of the family."""
    tensor = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    if not all(shape):
        raise ValueError(f"`{info.name}` has an unnamed axis: {shape}")
    return dtype, shape
