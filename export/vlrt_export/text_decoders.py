"""Text decoders of vision-encoder-decoder models: GPT-2, BERT and RoBERTa in transformers' layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.bert_layout import bert_layout, head_layout
from vlrt_export.modules.bert import BertDecoder, Positions
from vlrt_export.modules.gpt2 import DecoderSizes, Gpt2
from vlrt_export.weight_layout import Layout, Part, same

_BERT = ("bert",)
_ROBERTA = ("roberta", "xlm-roberta", "camembert")
KINDS = ("gpt2", *_BERT, *_ROBERTA)


@dataclass(frozen=True)
class TextDecoder:
    """A decoder with cross-attention.

    Args:
        module: in eval mode.
        layout: where its parameters lie in the checkpoint.
        longest: most tokens of a sequence.
    """

    module: Gpt2 | BertDecoder
    layout: Layout
    longest: int


@dataclass(frozen=True)
class _Kind:
    """How to make a decoder, and where its parameters lie once it is known whether words are tied."""

    make: Callable[[bool], Gpt2 | BertDecoder]
    layout: Callable[[bool, Mapping[str, Tensor]], Layout]
    words: str
    matrix: str
    longest: int


def load_decoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str, where: str) -> TextDecoder:
    """The decoder of a checkpoint.

    Args:
        config: its part of the configuration.
        tensors: of the checkpoint.
        prefix: of the decoder's names, ``decoder.``.
        where: the checkpoint's name for messages.

    Raises:
        VlrtError: an unknown kind or one that attends otherwise; a tensor missing or of another shape or dtype.
    """
    kind = _kind(config, prefix)
    tied = _is_tied(kind, tensors)
    layout = kind.layout(tied, tensors)
    return TextDecoder(weight_layout.build(lambda: kind.make(tied), layout, tensors, where), layout, kind.longest)


def random_decoder(config: Mapping[str, Any], prefix: str) -> TextDecoder:
    """A decoder of that configuration with random weights of torch's current seed and tied words."""
    kind = _kind(config, prefix)
    module: nn.Module = kind.make(True).eval().requires_grad_(False)
    if not isinstance(module, (Gpt2, BertDecoder)):
        raise TypeError(type(module))
    return TextDecoder(module, kind.layout(True, {}), kind.longest)


def _is_tied(kind: _Kind, tensors: Mapping[str, Tensor]) -> bool:
    if kind.matrix not in tensors or kind.words not in tensors:
        return True
    matrix, words = tensors[kind.matrix], tensors[kind.words]
    return matrix.shape == words.shape and torch.equal(matrix, words)


def _kind(config: Mapping[str, Any], prefix: str) -> _Kind:
    name = str(config.get("model_type"))
    if name not in KINDS:
        raise VlrtError(f"text decoders of kind `{name}` are not known", f"known are {', '.join(KINDS)}")
    if not config.get("add_cross_attention", True):
        raise VlrtError("the decoder has no cross-attention, so it sees no image", "check `config.json`")
    try:
        return _gpt2(config, prefix) if name == "gpt2" else _bert(config, prefix, name)
    except (ValueError, TypeError, KeyError) as error:
        raise VlrtError(f"the decoder's configuration is not `{name}`'s: {error}", "check `config.json`") from None


def _gpt2(config: Mapping[str, Any], prefix: str) -> _Kind:
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if bool(config.get(name, usual)) != usual:
            raise VlrtError(f"GPT-2 with `{name}` {config[name]} is not served", "report this with the model")
    width = config.get("n_embd", 768)
    sizes = DecoderSizes(
        config.get("vocab_size", 50257),
        config.get("n_positions", 1024),
        width,
        config.get("n_layer", 12),
        config.get("n_head", 12),
        config.get("n_inner") or 4 * width,
        memory_width=width,
        activation=config.get("activation_function", "gelu_new"),
        epsilon=config.get("layer_norm_epsilon", 1e-5),
    )
    words, matrix = f"{prefix}transformer.wte.weight", f"{prefix}lm_head.weight"

    def layout(tied: bool, _: Mapping[str, Tensor]) -> Layout:
        head = {"lm_head.weight": Part((words if tied else matrix,))}
        return gpt2_layout(f"{prefix}transformer.", sizes.layers, cross=True) | head

    return _Kind(lambda tied: Gpt2(sizes, tied), layout, words, matrix, sizes.positions)


def gpt2_layout(prefix: str, layers: int, *, cross: bool) -> Layout:
    """Where GPT-2's parameters lie, the language-model head left out; its `Conv1D` layers lie as ours do."""
    names = {f"h.{n}.{part}" for n in range(layers) for part in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj")}
    names |= {f"h.{n}.mlp.{part}" for n in range(layers) for part in ("c_fc", "c_proj")}
    if cross:
        parts = ("ln_cross_attn", "crossattention.q_attn", "crossattention.c_attn", "crossattention.c_proj")
        names |= {f"h.{n}.{part}" for n in range(layers) for part in parts}
    found = {f"{name}.weight": Part((f"{prefix}{name}.weight",)) for name in ("wte", "wpe")}
    for name in (*sorted(names), "ln_f"):
        found |= same(name, f"{prefix}{name}")
    return found


def _bert(config: Mapping[str, Any], prefix: str, name: str) -> _Kind:
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise VlrtError("BERT with relative positions is not served", "report this with the model")
    roberta = name in _ROBERTA
    pad = config.get("pad_token_id", 1)
    positions = Positions(pad + 1, pad) if roberta else Positions()
    width = config.get("hidden_size", 768)
    sizes = DecoderSizes(
        config.get("vocab_size", 50265 if roberta else 30522),
        config.get("max_position_embeddings", 512),
        width,
        config.get("num_hidden_layers", 12),
        config.get("num_attention_heads", 12),
        config.get("intermediate_size", 3072),
        memory_width=width,
        activation=config.get("hidden_act", "gelu"),
        epsilon=config.get("layer_norm_eps", 1e-12),
    )
    inside = f"{prefix}roberta." if roberta else f"{prefix}bert."
    head = f"{prefix}lm_head." if roberta else f"{prefix}cls.predictions."
    parts = {"norm": "layer_norm", "dense": "dense"}
    if not roberta:
        parts = {"norm": "transform.LayerNorm", "dense": "transform.dense"}
    words, matrix = f"{inside}embeddings.word_embeddings.weight", f"{head}decoder.weight"

    def make(tied: bool) -> BertDecoder:
        decoder = BertDecoder(sizes, positions, tied)
        if roberta:
            decoder.transform_activation = "gelu"  # its head has no other, whatever the layers have
        return decoder

    def layout(tied: bool, tensors: Mapping[str, Tensor]) -> Layout:
        bias = f"{head}decoder.bias" if f"{head}bias" not in tensors and tensors else f"{head}bias"
        found = bert_layout(inside, sizes.layers, cross=True, token_types=True)
        return found | head_layout(head, words if tied else matrix, bias, **parts)

    return _Kind(make, layout, words, matrix, sizes.positions - positions.first)
