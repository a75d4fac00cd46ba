"""BLIP checkpoints in transformers' layout: which of the three models it is, its sizes and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlrt.errors import UsageError, VlrtError
from vlrt_export import weight_layout
from vlrt_export.bert_layout import bert_layout, head_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.modules.bert import BertDecoder, BertEncoder
from vlrt_export.modules.dense import Dense
from vlrt_export.modules.gpt2 import DecoderSizes
from vlrt_export.modules.vit import Vit, VitSizes
from vlrt_export.weight_layout import Layout, Part, linear, same

CAPTIONING, QUESTIONS, RETRIEVAL = "captioning", "questions", "retrieval"
KINDS = (CAPTIONING, QUESTIONS, RETRIEVAL)
_IGNORED = r"position_ids$|^logit_scale$|^temp$"

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class BlipSizes:
    """Sizes of the vision transformer and of the text transformers, and of the contrastive space."""

    vision: VitSizes
    text: DecoderSizes
    shared: int = 256


@dataclass(frozen=True)
class BlipIds:
    """Ids with a meaning: the decoder's start and end, padding, and what a stand-in tokenizer starts texts with."""

    bos: int
    cls: int
    sep: int
    pad: int


@dataclass(frozen=True)
class Blip:
    """A BLIP model in eval mode; parts that its kind does not have are `None`.

    Args:
        kind: one of `KINDS`.
        decoder: of captions, or of answers.
        encoder: of questions, or of sentences to match.
        heads: retrieval's `vision_proj`, `text_proj` and `itm_head`.
    """

    kind: str
    sizes: BlipSizes
    ids: BlipIds
    vision: Vit
    decoder: BertDecoder | None = None
    encoder: BertEncoder | None = None
    heads: nn.ModuleDict | None = None


def load_blip(checkpoint: Checkpoint) -> Blip:
    """Reads a `BlipForConditionalGeneration`, `BlipForQuestionAnswering` or `BlipForImageTextRetrieval`.

    Raises:
        VlrtError: another model; a tensor missing, left over, of another shape or dtype.
    """
    tensors, where = checkpoint.tensors, checkpoint.origin
    kind = _kind(tensors, where)
    sizes, ids = _sizes(checkpoint)
    _check_question_width(kind, sizes)
    layouts: list[Layout] = []

    def read(make: Callable[[], Module], layout: Layout) -> Module:
        layouts.append(layout)
        return weight_layout.build(make, layout, tensors, where)

    vision = read(lambda: Vit(sizes.vision), vision_layout(sizes.vision.layers))
    decoder = encoder = heads = None
    if kind != RETRIEVAL:
        tied = _is_tied(tensors)
        decoder = read(lambda: BertDecoder(sizes.text, tied=tied), decoder_layout(tensors, sizes.text.layers, tied))
    if kind != CAPTIONING:
        layout = bert_layout("text_encoder.", sizes.text.layers, cross=True, token_types=False)
        encoder = read(lambda: BertEncoder(sizes.text), layout)
    if kind == RETRIEVAL:
        names = ("vision_proj", "text_proj", "itm_head")
        heads = read(lambda: _heads(sizes), {k: v for name in names for k, v in linear(name, name).items()})
    known = weight_layout.names_of(*layouts) | {_TIED, f"{_HEAD}bias", f"{_HEAD}decoder.bias"}
    weight_layout.check_surplus(tensors, known, _IGNORED, where)
    return Blip(kind, sizes, ids, vision, decoder, encoder, heads)


def random_blip(options: Mapping[str, Any], kind: str, seed: int) -> Blip:
    """A model of the zoo's sizes (those of BLIP-base where it names none) with random weights that see the image.

    Raises:
        UsageError: an unknown kind.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no BLIP for `{kind}`", f"one of {', '.join(KINDS)}")
    sizes, ids = sizes_of({"text_config": options.get("text", {}), "vision_config": options.get("vision", {})})
    _check_question_width(kind, sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {"vision": Vit(sizes.vision)}
        if kind != RETRIEVAL:
            parts["decoder"] = BertDecoder(sizes.text)
        if kind != CAPTIONING:
            parts["encoder"] = BertEncoder(sizes.text)
        if kind == RETRIEVAL:
            parts["heads"] = _heads(sizes)
    return Blip(kind, sizes, ids, **{name: part.eval().requires_grad_(False) for name, part in parts.items()})


def sizes_of(config: Mapping[str, Any]) -> tuple[BlipSizes, BlipIds]:
    """Sizes and ids from a `config.json`, with transformers' defaults.

    Raises:
        VlrtError: numbers that do not fit each other.
    """
    vision = _VISION | dict(config.get("vision_config") or {})
    text = _TEXT | dict(config.get("text_config") or {})
    try:
        seen = VitSizes(
            vision["image_size"],
            vision["patch_size"],
            *_transformer(vision),
            activation=vision["hidden_act"],
            epsilon=vision["layer_norm_eps"],
        )
        said = DecoderSizes(
            text["vocab_size"],
            text["max_position_embeddings"],
            *_transformer(text),
            memory_width=vision["hidden_size"],
            activation=text["hidden_act"],
            epsilon=text["layer_norm_eps"],
        )
    except (ValueError, TypeError) as error:
        raise VlrtError(f"the configuration is not BLIP's: {error}", "check `config.json`") from None
    ids = BlipIds(text["bos_token_id"], text["cls_token_id"], text["sep_token_id"], text["pad_token_id"])
    return BlipSizes(seen, said, config.get("image_text_hidden_size", 256)), ids


def vision_layout(layers: int, prefix: str = "vision_model.") -> Layout:
    """Where the image encoder's parameters lie."""
    inside = f"{prefix}embeddings."
    found = same("patches", f"{inside}patch_embedding") | same("norm", f"{prefix}post_layernorm")
    found["leading"] = Part((f"{inside}class_embedding",))
    found["position"] = Part((f"{inside}position_embedding",))
    for number in range(layers):
        ours, theirs = f"layers.{number}", f"{prefix}encoder.layers.{number}"
        found |= linear(f"{ours}.qkv", f"{theirs}.self_attn.qkv")
        found |= linear(f"{ours}.projection", f"{theirs}.self_attn.projection")
        found |= same(f"{ours}.norm1", f"{theirs}.layer_norm1") | same(f"{ours}.norm2", f"{theirs}.layer_norm2")
        found |= linear(f"{ours}.fc1", f"{theirs}.mlp.fc1") | linear(f"{ours}.fc2", f"{theirs}.mlp.fc2")
    return found


_HEAD = "text_decoder.cls.predictions."
_TIED = f"{_HEAD}decoder.weight"
_WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"


def decoder_layout(tensors: Mapping[str, Tensor], layers: int, tied: bool) -> Layout:
    """Where the text decoder's parameters lie; the head's matrix is the word embedding where they are tied."""
    bias = f"{_HEAD}bias" if f"{_HEAD}bias" in tensors else f"{_HEAD}decoder.bias"
    head = head_layout(_HEAD, _WORDS if tied else _TIED, bias, norm="transform.LayerNorm", dense="transform.dense")
    return bert_layout("text_decoder.bert.", layers, cross=True, token_types=False) | head


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    if _TIED not in tensors or _WORDS not in tensors:
        return True
    matrix, words = tensors[_TIED], tensors[_WORDS]
    return matrix.shape == words.shape and torch.equal(matrix, words)


def _check_question_width(kind: str, sizes: BlipSizes) -> None:
    if kind == QUESTIONS and sizes.text.width != sizes.vision.width:
        what = f"the answer's decoder reads states of {sizes.vision.width}, the question's are {sizes.text.width} wide"
        raise VlrtError(what, "check `config.json`")


def _kind(tensors: Mapping[str, Tensor], where: str) -> str:
    decoder, encoder = (any(name.startswith(part) for name in tensors) for part in ("text_decoder.", "text_encoder."))
    if "vision_model.embeddings.class_embedding" in tensors:
        if decoder:
            return QUESTIONS if encoder else CAPTIONING
        if encoder and "itm_head.weight" in tensors:
            return RETRIEVAL
    shown = ", ".join(f"`{name}`" for name in list(tensors)[:3])
    what = f"`{where}` is no BLIP for captions, questions or retrieval: its tensors are {shown}, …"
    raise VlrtError(what, "`vlrt models` names the other families")


def _sizes(checkpoint: Checkpoint) -> tuple[BlipSizes, BlipIds]:
    config = checkpoint.config
    if config.get("model_type") != "blip":
        what = f"`{checkpoint.origin}` is a `{config.get('model_type')}` model, expected `blip`"
        raise VlrtError(what, "give the folder that holds the weights and their config.json")
    return sizes_of(config)


def _transformer(config: Mapping[str, Any]) -> tuple[int, int, int, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    width, layers, heads, feed_forward = (config[name] for name in names)
    return width, layers, heads, feed_forward


def _heads(sizes: BlipSizes) -> nn.ModuleDict:
    width = sizes.text.width
    return nn.ModuleDict(
        {
            "vision_proj": Dense(sizes.vision.width, sizes.shared),
            "text_proj": Dense(width, sizes.shared),
            "itm_head": Dense(width, 2),
        }
    )


_VISION: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
_TEXT: dict[str, Any] = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "bos_token_id": 30522,
    "cls_token_id": 101,
    "sep_token_id": 102,
    "pad_token_id": 0,
}
