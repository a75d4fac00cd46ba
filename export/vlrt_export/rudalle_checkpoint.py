"""DALL-E checkpoints of ai-forever/ru-dalle (Malevich, Emojich, Kandinsky, …): a flat state dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from vlrt.attention_patterns import Kind, PatternSpec
from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.dalle_model import DalleModel, assemble, branch_layout, lazily
from vlrt_export.modules.dalle import DalleSizes
from vlrt_export.weight_layout import Layout, Part, linear, same

_WORDS, _PLACES = "text_embeddings.weight", "text_pos_embeddings.weight"
_START, _END = 2, 3
"""Ids that its tokenizer puts before and behind a text."""

_KERNEL = 11
_PARTS = {
    "attention.norm": "input_layernorm",
    "attention.norm_behind": "before_first_addition_layernorm",
    "feed_forward.norm": "post_attention_layernorm",
    "feed_forward.norm_behind": "before_second_addition_layernorm",
    "queries_keys_values": "attention.query_key_value",
    "project": "attention.dense",
    "widen": "mlp.dense_h_to_4h",
    "narrow": "mlp.dense_4h_to_h",
}
_MASKS = r"(^|\.)(row|col|conv)_mask$"


def is_rudalle(checkpoint: Checkpoint) -> bool:
    """Whether the names are those of ru-dalle's `DalleModel`."""
    return _WORDS in checkpoint.tensors and "image_row_embeddings.weight" in checkpoint.tensors


def load_rudalle(checkpoint: Checkpoint, options: Mapping[str, Any]) -> DalleModel:
    """Reads a checkpoint; every size but the number of heads comes from its shapes.

    Args:
        options: `heads` (width over 64 up to a width of 1,024, else over 128), `version`, ``v3`` or ``v2``,
            `conv_kernel` (11 where not given, as in the reference).

    Raises:
        VlrtError: another version; a tensor missing, left over, of another shape or dtype.
    """
    tensors, where = checkpoint.tensors, checkpoint.origin
    sizes = _sizes(tensors, options, where)
    first = sizes.words
    loaders: dict[str, Callable[[], Tensor]] = {name: partial(tensors.__getitem__, name) for name in tensors}
    loaders["to_logits.codes.weight"] = lambda: tensors["to_logits.1.weight"][first:]
    loaders["to_logits.codes.bias"] = lambda: tensors["to_logits.1.bias"][first:]
    if sizes.begin is None:  # the table has a place for it all the same
        loaders[_PLACES] = lambda: tensors[_PLACES][: sizes.positions]
    layouts = _layouts(sizes)
    text, decoder = assemble(sizes, layouts, lazily(loaders, where), where)
    known = weight_layout.names_of(*layouts) | {"to_logits.1.weight", "to_logits.1.bias"}
    weight_layout.check_surplus(tensors, known, _MASKS, where)
    return DalleModel(text, decoder, checkpoint, _START, _END, lowercase=True)


def _sizes(tensors: Mapping[str, Tensor], options: Mapping[str, Any], where: str) -> DalleSizes:
    version = str(options.get("version") or "v3")
    if version not in ("v2", "v3"):
        raise VlrtError(f"there is no version `{version}` of ru-dalle", "correct models.yaml: `v3` or `v2`")
    try:
        words, width = tensors[_WORDS].shape
        text = len(tensors[_PLACES]) - 1
        grid = len(tensors["image_row_embeddings.weight"]), len(tensors["image_col_embeddings.weight"])
        layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("transformer.layers."))
        heads = int(options.get("heads") or width // (64 if width <= 1024 else 128))
        if not heads or width % heads:
            raise ValueError(f"{heads} heads do not divide {width}")
        around: Kind = "around_wrapped" if version == "v2" else "around"
        # Its second version puts an id before the text but counts cells as if it had not.
        counted = (text, grid)
        kernel = int(options.get("conv_kernel") or _KERNEL)
        patterns = [PatternSpec("row", "recent", *counted), PatternSpec("column", "column", *counted)]
        patterns.append(PatternSpec("conv", around, *counted, kernel))
        attention = tuple(_attention(layer, layers) for layer in range(layers))
        return DalleSizes(
            words=words,
            text=text,
            begin=_START if version == "v2" else None,
            codebook=len(tensors["to_logits.1.weight"]) - words,
            grid=grid,
            width=width,
            heads=heads,
            head_width=width // heads,
            feed_forward=len(tensors["transformer.layers.0.mlp.dense_h_to_4h.weight"]),
            attention=attention,
            patterns=tuple(pattern for pattern in patterns if pattern.name in attention),
            biased=True,
            sandwich="transformer.layers.0.before_first_addition_layernorm.weight" in tensors,
            final_norm=True,
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise VlrtError(f"`{where}` is not a DALL-E of ru-dalle: {error}", "is the file whole?") from None


def _attention(layer: int, layers: int) -> str:
    if (layer - 1) % 4 == 0:
        return "column"
    return "row" if layer != layers - 1 else "conv"


def _layouts(sizes: DalleSizes) -> tuple[Layout, Layout]:
    text = {"words.weight": Part((_WORDS,)), "places.weight": Part((_PLACES,))}
    decoder = {
        "codes.weight": Part(("image_embeddings.weight",)),
        "rows.weight": Part(("image_row_embeddings.weight",)),
        "columns.weight": Part(("image_col_embeddings.weight",)),
    }
    decoder |= same("final_norm", "transformer.final_layernorm") | same("norm", "to_logits.0")
    decoder |= linear("logits", "to_logits.codes")
    return text, decoder | branch_layout(sizes, lambda layer, part: f"transformer.layers.{layer}.{_PARTS[part]}")
