"""Sizes and ids of BLIP-2 and InstructBLIP from their ``config.json``, with transformers' defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlrt.errors import VlrtError
from vlrt_export.modules.llama import LlamaSizes
from vlrt_export.modules.opt import OptSizes
from vlrt_export.modules.qformer import QFormerSizes
from vlrt_export.modules.t5 import T5_DEFAULTS, T5Sizes
from vlrt_export.modules.vit import VitSizes

FAMILIES = {"blip-2": False, "instructblip": True}
"""`model_type` of the configuration -> whether the Q-Former reads the instruction."""

LanguageSizes = OptSizes | LlamaSizes | T5Sizes

_T5_POSITIONS = 512
"""Longest answer: distances have no end of their own, so this is what T5 was trained with."""


@dataclass(frozen=True)
class Blip2Ids:
    """Ids with a meaning.

    Args:
        start: what the decoder begins with, behind the image where it is one model with the prompt's reader.
        ends, pad: of the language model.
        image: stands where the image's embeddings are.
        query_pad: padding of the Q-Former's text.
    """

    start: int
    ends: tuple[int, ...]
    pad: int
    image: int
    query_pad: int = 0


@dataclass(frozen=True)
class Blip2Sizes:
    """Of the image encoder, the Q-Former, the language model and the contrastive space.

    Args:
        language: `None` for retrieval, which has no language model.
        positions: tokens of a sequence, the image's included.
    """

    vision: VitSizes
    qformer: QFormerSizes
    language: LanguageSizes | None
    positions: int
    shared: int = 256


def read_config(config: Mapping[str, Any], where: str, retrieval: bool = False) -> tuple[Blip2Sizes, Blip2Ids, bool]:
    """Sizes, ids, and whether the Q-Former reads the instruction.

    Raises:
        VlrtError: another model, a language model that has no module here, or numbers that do not fit each other.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        what = f"`{where}` is a `{kind}` model, expected {' or '.join(f'`{name}`' for name in FAMILIES)}"
        raise VlrtError(what, "give the folder that holds the weights and their config.json")
    text = dict(config.get("text_config") or {})
    try:
        vision = _vision(_VISION | dict(config.get("vision_config") or {}))
        reads = FAMILIES[kind] or retrieval
        qformer = _qformer(_QFORMER | dict(config.get("qformer_config") or {}), vision.width, config, reads)
        language, ids, positions = _language(text, config, qformer.queries)
    except (ValueError, TypeError, KeyError) as error:
        raise VlrtError(f"the configuration is not that of a `{kind}` model: {error}", "check `config.json`") from None
    shared = config.get("image_text_hidden_size", 256)
    return Blip2Sizes(vision, qformer, None if retrieval else language, positions, shared), ids, FAMILIES[kind]


def _vision(config: Mapping[str, Any]) -> VitSizes:
    return VitSizes(
        config["image_size"],
        config["patch_size"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        activation=config["hidden_act"],
        epsilon=config["layer_norm_eps"],
    )


def _qformer(config: Mapping[str, Any], memory_width: int, whole: Mapping[str, Any], reads: bool) -> QFormerSizes:
    if config["position_embedding_type"] != "absolute":
        raise ValueError(f"the Q-Former has `{config['position_embedding_type']}` positions, expected `absolute`")
    return QFormerSizes(
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
        config["intermediate_size"],
        memory_width,
        queries=whole.get("num_query_tokens", 32),
        cross_every=config["cross_attention_frequency"],
        vocabulary=config["vocab_size"] if reads else 0,
        positions=config["max_position_embeddings"] if reads else 0,
        activation=config["hidden_act"],
        epsilon=config["layer_norm_eps"],
    )


def _language(given: Mapping[str, Any], whole: Mapping[str, Any], queries: int) -> tuple[LanguageSizes, Blip2Ids, int]:
    kind = given.get("model_type", "opt")
    if kind == "opt":
        text = _OPT | dict(given)
        return _opt(text), _ids(text, whole, text["bos_token_id"]), text["max_position_embeddings"]
    if kind == "llama":
        text = _LLAMA | dict(given)
        return _llama(text), _ids(text, whole, text["bos_token_id"]), text["max_position_embeddings"]
    if kind == "t5":
        text = _T5 | dict(given)
        start = text.get("decoder_start_token_id")
        return _t5(text), _ids(text, whole, text["pad_token_id"] if start is None else start), _T5_POSITIONS
    what = f"the language model is `{kind}`, which this exporter has no decoder for"
    raise VlrtError(what, "choose a checkpoint with OPT, LLaMA (Vicuna) or Flan-T5")


def _ids(text: Mapping[str, Any], whole: Mapping[str, Any], start: int) -> Blip2Ids:
    ends, pad, image = text["eos_token_id"], text["pad_token_id"], whole.get("image_token_index")
    if not isinstance(pad, int) or not 0 <= pad < text["vocab_size"]:
        pad = _UNKNOWN  # LLaMA's configurations have none, or -1
    if not isinstance(image, int) or not 0 <= image < text["vocab_size"]:
        image = pad
    query_pad = (_QFORMER | dict(whole.get("qformer_config") or {}))["pad_token_id"]
    return Blip2Ids(start, tuple(ends) if isinstance(ends, list) else (ends,), pad, image, query_pad)


def _opt(text: Mapping[str, Any]) -> OptSizes:
    if not text["layer_norm_elementwise_affine"]:
        raise ValueError("layer norms without weights are not known")
    if text["word_embed_proj_dim"] not in (None, 0, text["hidden_size"]):
        raise ValueError("an image's embeddings cannot stand beside words of another width")
    return OptSizes(
        text["vocab_size"],
        text["max_position_embeddings"],
        text["hidden_size"],
        text["num_hidden_layers"],
        text["num_attention_heads"],
        text["ffn_dim"],
        activation=text["activation_function"],
        norm_first=text["do_layer_norm_before"],
        final_norm=text["do_layer_norm_before"] and not text["_remove_final_layer_norm"],
    )


def _llama(text: Mapping[str, Any]) -> LlamaSizes:
    heads, width = text["num_attention_heads"], text["hidden_size"]
    for name, usual in (("num_key_value_heads", heads), ("head_dim", width // heads), ("rope_scaling", None)):
        if text[name] not in (None, usual):
            raise ValueError(f"`{name}` is {text[name]}, served is {usual}")
    for name in ("attention_bias", "mlp_bias"):
        if text[name]:
            raise ValueError(f"`{name}` is set, served are LLaMAs without")
    return LlamaSizes(
        text["vocab_size"],
        text["max_position_embeddings"],
        width,
        text["num_hidden_layers"],
        heads,
        text["intermediate_size"],
        activation=text["hidden_act"],
        epsilon=text["rms_norm_eps"],
        theta=text["rope_theta"],
    )


def _t5(text: Mapping[str, Any]) -> T5Sizes:
    activation, gated = _feed_forward(text["feed_forward_proj"])
    return T5Sizes(
        text["vocab_size"],
        text["d_model"],
        text.get("num_decoder_layers") or text["num_layers"],
        text["num_layers"],
        text["num_heads"],
        text["d_kv"],
        text["d_ff"],
        buckets=text["relative_attention_num_buckets"],
        farthest=text["relative_attention_max_distance"],
        activation=activation,
        gated=gated,
        scaled_head=text["tie_word_embeddings"],
        epsilon=text["layer_norm_epsilon"],
    )


def _feed_forward(described: str) -> tuple[str, bool]:
    """Activation and gating of ``relu``, ``gated-gelu``, …

    Source: reproduces ``T5Config`` of transformers, where the gated gelu is the approximate one.
    """
    gated = described.startswith("gated-")
    activation = described.removeprefix("gated-")
    return ("gelu_new" if gated and activation == "gelu" else activation), gated


_VISION: dict[str, Any] = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
_QFORMER: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "cross_attention_frequency": 2,
    "pad_token_id": 0,
}
_OPT: dict[str, Any] = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "do_layer_norm_before": True,
    "_remove_final_layer_norm": False,
    "word_embed_proj_dim": None,
    "num_attention_heads": 12,
    "activation_function": "relu",
    "layer_norm_elementwise_affine": True,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
_UNKNOWN = 0
_T5: dict[str, Any] = T5_DEFAULTS | {
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
