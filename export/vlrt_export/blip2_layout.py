"""Where the parameters of BLIP-2's and InstructBLIP's parts lie in transformers' state dicts."""

from __future__ import annotations

from dataclasses import replace

from vlrt_export.blip_checkpoint import vision_layout
from vlrt_export.modules.llama import LlamaSizes
from vlrt_export.modules.opt import OptSizes
from vlrt_export.modules.qformer import QFormerSizes
from vlrt_export.modules.t5 import T5Sizes
from vlrt_export.weight_layout import Layout, Part, linear, same

LANGUAGE = "language_model."
OPT_WORDS, T5_WORDS = f"{LANGUAGE}model.decoder.embed_tokens.weight", f"{LANGUAGE}shared.weight"
LLAMA_WORDS = f"{LANGUAGE}model.embed_tokens.weight"
HEAD = f"{LANGUAGE}lm_head.weight"


def image_layout(layers: int) -> Layout:
    """The image encoder: BLIP's names, but queries, keys and values may have no bias."""
    found = vision_layout(layers)
    return {name: replace(part, optional=True) if name.endswith("qkv.bias") else part for name, part in found.items()}


def qformer_layout(sizes: QFormerSizes, instructed: bool) -> Layout:
    """The Q-Former and its queries; InstructBLIP keeps the embeddings inside of it."""
    inside = "qformer.embeddings." if instructed else "embeddings."
    found: Layout = {"query_tokens": Part(("query_tokens",))}
    found |= same("norm", f"{inside}layernorm" if instructed else "qformer.layernorm")
    if sizes.vocabulary:
        found |= same("word", f"{inside}word_embeddings", bias=False)
        found |= same("position", f"{inside}position_embeddings", bias=False)
    for number in range(sizes.layers):
        ours, theirs = f"layers.{number}", f"qformer.encoder.layer.{number}"
        found |= _attention(f"{ours}.attention", f"{theirs}.attention")
        if number % sizes.cross_every == 0:
            found |= _attention(f"{ours}.cross", f"{theirs}.crossattention")
        found |= _feed_forward(f"{ours}.queries", theirs, "_query")
        if sizes.vocabulary:
            found |= _feed_forward(f"{ours}.words", theirs, "")
    return found


def _attention(ours: str, theirs: str) -> Layout:
    inside = f"{theirs}.attention"
    found = linear(f"{ours}.query", f"{inside}.query")
    found |= linear(f"{ours}.key_value", f"{inside}.key", f"{inside}.value")
    return (
        found | linear(f"{ours}.output", f"{theirs}.output.dense") | same(f"{ours}.norm", f"{theirs}.output.LayerNorm")
    )


def _feed_forward(ours: str, theirs: str, kind: str) -> Layout:
    found = linear(f"{ours}.intermediate", f"{theirs}.intermediate{kind}.dense")
    found |= linear(f"{ours}.output", f"{theirs}.output{kind}.dense")
    return found | same(f"{ours}.norm", f"{theirs}.output{kind}.LayerNorm")


def opt_layout(sizes: OptSizes, tied: bool) -> Layout:
    """An `OPTForCausalLM` within the model; its linear layers may have no biases."""
    prefix = f"{LANGUAGE}model.decoder."
    found: Layout = {"words.weight": Part((OPT_WORDS,)), "head.weight": Part((OPT_WORDS if tied else HEAD,))}
    found |= same("position", f"{prefix}embed_positions", bias=False)
    if sizes.projected:
        found |= linear("project_in", f"{prefix}project_in", bias=False)
        found |= linear("project_out", f"{prefix}project_out", bias=False)
    if sizes.final_norm:
        found |= same("norm", f"{prefix}final_layer_norm")
    for number in range(sizes.layers):
        ours, theirs = f"layers.{number}", f"{prefix}layers.{number}"
        three = (f"{theirs}.self_attn.{kind}_proj" for kind in "qkv")
        found |= linear(f"{ours}.qkv", *three, optional_bias=True)
        found |= linear(f"{ours}.output", f"{theirs}.self_attn.out_proj", optional_bias=True)
        found |= same(f"{ours}.norm1", f"{theirs}.self_attn_layer_norm")
        found |= same(f"{ours}.norm2", f"{theirs}.final_layer_norm")
        for layer in ("fc1", "fc2"):
            found |= linear(f"{ours}.{layer}", f"{theirs}.{layer}", optional_bias=True)
    return found


def llama_layout(sizes: LlamaSizes, tied: bool) -> Layout:
    """A `LlamaForCausalLM` within the model."""
    prefix = f"{LANGUAGE}model."
    found: Layout = {"words.weight": Part((LLAMA_WORDS,)), "head.weight": Part((LLAMA_WORDS if tied else HEAD,))}
    found |= same("norm", f"{prefix}norm", bias=False)
    for number in range(sizes.layers):
        ours, theirs = f"layers.{number}", f"{prefix}layers.{number}"
        three = (f"{theirs}.self_attn.{kind}_proj" for kind in "qkv")
        found |= linear(f"{ours}.qkv", *three, bias=False)
        found |= linear(f"{ours}.output", f"{theirs}.self_attn.o_proj", bias=False)
        found |= same(f"{ours}.norm1", f"{theirs}.input_layernorm", bias=False)
        found |= same(f"{ours}.norm2", f"{theirs}.post_attention_layernorm", bias=False)
        found |= linear(f"{ours}.gate_up", f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj", bias=False)
        found |= linear(f"{ours}.down", f"{theirs}.mlp.down_proj", bias=False)
    return found


def t5_encoder_layout(sizes: T5Sizes) -> Layout:
    """The encoder of a `T5ForConditionalGeneration` within the model."""
    found = _t5_ends(f"{LANGUAGE}encoder.")
    for number in range(sizes.encoder_layers):
        ours, theirs = f"layers.{number}", f"{LANGUAGE}encoder.block.{number}.layer"
        found |= _t5_attention(f"{ours}.attention", f"{theirs}.0", "SelfAttention")
        found |= _t5_feed_forward(f"{ours}.mlp", f"{theirs}.1", sizes.gated)
    return found


def t5_decoder_layout(sizes: T5Sizes, tied: bool) -> Layout:
    """Its decoder and head."""
    found = _t5_ends(f"{LANGUAGE}decoder.") | {"head.weight": Part((T5_WORDS if tied else HEAD,))}
    for number in range(sizes.layers):
        ours, theirs = f"layers.{number}", f"{LANGUAGE}decoder.block.{number}.layer"
        found |= _t5_attention(f"{ours}.attention", f"{theirs}.0", "SelfAttention")
        inside = f"{theirs}.1.EncDecAttention"
        found |= linear(f"{ours}.cross.query", f"{inside}.q", bias=False)
        found |= linear(f"{ours}.cross.key_value", f"{inside}.k", f"{inside}.v", bias=False)
        found |= linear(f"{ours}.cross.output", f"{inside}.o", bias=False)
        found |= same(f"{ours}.cross.norm", f"{theirs}.1.layer_norm", bias=False)
        found |= _t5_feed_forward(f"{ours}.mlp", f"{theirs}.2", sizes.gated)
    return found


def _t5_ends(prefix: str) -> Layout:
    bias = f"{prefix}block.0.layer.0.SelfAttention.relative_attention_bias"
    return (
        {"words.weight": Part((T5_WORDS,))}
        | same("bias", bias, bias=False)
        | same("norm", f"{prefix}final_layer_norm", bias=False)
    )


def _t5_attention(ours: str, theirs: str, kind: str) -> Layout:
    inside = f"{theirs}.{kind}"
    found = linear(f"{ours}.qkv", f"{inside}.q", f"{inside}.k", f"{inside}.v", bias=False)
    found |= linear(f"{ours}.output", f"{inside}.o", bias=False)
    return found | same(f"{ours}.norm", f"{theirs}.layer_norm", bias=False)


def _t5_feed_forward(ours: str, theirs: str, gated: bool) -> Layout:
    inside = f"{theirs}.DenseReluDense"
    found = linear(f"{ours}.inner", f"{inside}.wi_0" if gated else f"{inside}.wi", bias=False)
    if gated:
        found |= linear(f"{ours}.gate", f"{inside}.wi_1", bias=False)
    found |= linear(f"{ours}.output", f"{inside}.wo", bias=False)
    return found | same(f"{ours}.norm", f"{theirs}.layer_norm", bias=False)
