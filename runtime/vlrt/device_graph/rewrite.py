"""A graph that onnxruntime optimised, rewritten for the kernels that this processor has."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from vlrt.device_graph.attention import ATTENTION, replace_attention
from vlrt.device_graph.cached_attention import CACHED_ATTENTION, join_queries, replace_cached_attention
from vlrt.device_graph.convolution import CONV1X1, CONV3X3, replace_convolutions, saves_most_products
from vlrt.device_graph.embedding import EMBED_INT8, replace_embeddings
from vlrt.device_graph.gated_gelu import GATED_GELU, replace_gated_units
from vlrt.device_graph.group_norm import GROUP_NORM, replace_group_norms
from vlrt.device_graph.layer_norm import LAYER_NORM, replace_layer_norms
from vlrt.device_graph.linear import replace_products
from vlrt.device_graph.model import DOMAIN, Model
from vlrt.device_graph.products import LINEAR, LINEAR_INT8
from vlrt.device_graph.shape_rules import infer

VERSION = 9
"""Raised whenever the same graph would be rewritten differently, so that what was kept of before is made again."""

_AVX512, _VNNI = 1, 2
"""Levels of kernels, each with those below it."""

_OPERATORS = {
    ATTENTION: _AVX512,
    CACHED_ATTENTION: _AVX512,
    CONV1X1: _AVX512,
    CONV3X3: _AVX512,
    GATED_GELU: _AVX512,
    GROUP_NORM: _AVX512,
    LAYER_NORM: _AVX512,
    EMBED_INT8: _VNNI,
    LINEAR: _AVX512,
    LINEAR_INT8: _VNNI,
}


@dataclass(frozen=True)
class Counts:
    """What a rewritten graph consists of.

    Args:
        ours: how many of each of our operators stand in it.
        others: how many of each other operator, by domain and name.
    """

    ours: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)


def rewrite(source: Path, graph: Path, weights: Path, level: int) -> Counts:
    """Replaces products and attention by our operators, and packs their weights as those read them.

    Args:
        source: a graph that onnxruntime optimised and saved, its weights beside it.
        graph, weights: the files to write, in one folder that is not the source's.
        level: of the kernels at hand: 1 with AVX-512, 2 with its VNNI too.

    Returns:
        What was written. If nothing of it is ours, no file was.

    Raises:
        ValueError: not a graph that is understood.
        OSError: a file cannot be read or written.
    """
    model = Model(source)
    operators = {name for name, needed in _OPERATORS.items() if level >= needed}
    shapes = infer(model)
    if ATTENTION in operators:
        replace_attention(model, shapes)
        join_queries(model, shapes)
    if CACHED_ATTENTION in operators:
        replace_cached_attention(model, shapes)
    if GROUP_NORM in operators:
        replace_group_norms(model, shapes)
    if LAYER_NORM in operators:
        replace_layer_norms(model)
    if GATED_GELU in operators:
        replace_gated_units(model, shapes)
    if CONV3X3 in operators:
        replace_convolutions(model, shapes)
    replace_products(model, shapes, operators)
    replace_embeddings(model)
    model.remove_unused()
    counts = count(model)
    if counts.ours:
        model.write(graph, weights)
    return counts


def keeps_channels_apart(source: Path) -> bool:
    """Whether onnxruntime should leave pictures in planes of channels when it optimises a graph for `rewrite`.

    Raises:
        ValueError: not a graph that is understood.
        OSError: the file cannot be read.
    """
    return saves_most_products(Model(source))


def count(model: Model) -> Counts:
    """What a graph consists of."""
    nodes = model.nodes
    return Counts(
        Counter(node.op_type for node in nodes if node.domain == DOMAIN),
        Counter(node.kind for node in nodes if node.domain != DOMAIN),
    )
