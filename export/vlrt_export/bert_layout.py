"""Where the parameters of our BERT modules lie in the state dicts of transformers' `Bert…`, `Roberta…` and BLIP."""

from __future__ import annotations

from vlrt_export.weight_layout import Layout, Part, linear, same


def bert_layout(prefix: str, layers: int, *, cross: bool, token_types: bool) -> Layout:
    """Embeddings and layers.

    Args:
        prefix: of the checkpoint's names, e.g. ``text_decoder.bert.``.
        layers: how many.
        cross: whether they have cross-attention.
        token_types: whether the checkpoint has embeddings of token types, whose first is added to the positions.
    """
    inside = f"{prefix}embeddings."
    types = f"{inside}token_type_embeddings.weight" if token_types else ""
    found = {
        "embeddings.word.weight": Part((f"{inside}word_embeddings.weight",)),
        "embeddings.position.weight": Part((f"{inside}position_embeddings.weight",), added=types),
    }
    found |= same("embeddings.norm", f"{inside}LayerNorm")
    for number in range(layers):
        found |= _layer(f"layer.{number}", f"{prefix}encoder.layer.{number}", cross)
    return found


def _layer(ours: str, theirs: str, cross: bool) -> Layout:
    inside = f"{theirs}.attention.self"
    found = linear(f"{ours}.attention.qkv", f"{inside}.query", f"{inside}.key", f"{inside}.value")
    found |= _output(f"{ours}.attention", f"{theirs}.attention.output")
    if cross:
        inside = f"{theirs}.crossattention.self"
        found |= linear(f"{ours}.crossattention.query", f"{inside}.query")
        found |= linear(f"{ours}.crossattention.key_value", f"{inside}.key", f"{inside}.value")
        found |= _output(f"{ours}.crossattention", f"{theirs}.crossattention.output")
    found |= linear(f"{ours}.intermediate", f"{theirs}.intermediate.dense")
    return found | _output(ours, f"{theirs}.output")


def _output(ours: str, theirs: str) -> Layout:
    return linear(f"{ours}.output", f"{theirs}.dense") | same(f"{ours}.norm", f"{theirs}.LayerNorm")


def head_layout(prefix: str, matrix: str, bias: str, *, norm: str, dense: str) -> Layout:
    """The language-model head.

    Args:
        prefix: e.g. ``text_decoder.cls.predictions.``.
        matrix, bias: full names of the last layer's tensors; the matrix is the word embedding where they are tied.
        norm, dense: names of the transform's layers after the prefix.
    """
    found = linear("transform", f"{prefix}{dense}") | same("transform_norm", f"{prefix}{norm}")
    return found | {"head.weight": Part((matrix,)), "head_bias": Part((bias,))}
