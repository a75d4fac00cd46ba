"""Self-attention over caches extended in place, and cross-attention over memory that is never expanded per beam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_OPERATOR = "com.microsoft::GroupQueryAttention"


@dataclass(frozen=True)
class Places:
    """Where the tokens of one call stand in their sequences.

    Args:
        last: position of each row's last token, [R] int32.
        longest: most positions that any row has filled after the call, [1] int32.
        bias: added to the scores, [R, H, W, `longest`], for models whose places are distances.
    """

    last: Tensor
    longest: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one layer: a cache [R, H, positions, D], or what `memory_keys_values` makes of a memory."""

    keys: Tensor
    values: Tensor


def cached_attention(
    query: Tensor, key: Tensor, value: Tensor, past: KeysValues, places: Places, heads: int, scale: float | None = None
) -> tuple[Tensor, KeysValues]:
    """Causal self-attention of new tokens over all earlier ones; keys and values join the cache.

    In a graph this is ONNX Runtime's `GroupQueryAttention`, which writes in place where past and present share a
    buffer; in torch the same computation on a copy. Prompts of different lengths stand at the left; what their
    filling computes is never attended to, and later tokens overwrite it. Several tokens a row are served for rows
    without a past only (as the operator does for more than one row).

    Args:
        query, key, value: [R, W, H·D].
        past: the layer's cache.
        places: of the last token of each row.
        heads: H.
        scale: of the dot products; 1/√D where `None`.

    Returns:
        Mixed values [R, W, H·D] and the extended cache.

    Source: Vaswani et al. (arXiv 1706.03762), section 3.2.
    """
    if torch.onnx.is_in_onnx_export():
        return _operator(query, key, value, past, places, heads, scale)
    return _eager(query, key, value, past, places, heads, scale)


def _operator(
    query: Tensor, key: Tensor, value: Tensor, past: KeysValues, places: Places, heads: int, scale: float | None
) -> tuple[Tensor, KeysValues]:
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": heads}
    if scale is not None:
        attributes["scale"] = scale
    # The operator's inputs between these are for rotary positions.
    more = [] if places.bias is None else [None, None, None, places.bias]
    mixed, keys, values = torch.onnx.ops.symbolic_multi_out(
        _OPERATOR,
        [query, key, value, past.keys, past.values, places.last, places.longest, *more],
        attributes,
        dtypes=[query.dtype] * 3,
        shapes=[query.shape, past.keys.shape, past.values.shape],
        version=1,
    )
    return mixed, KeysValues(keys, values)


def _eager(
    query: Tensor, key: Tensor, value: Tensor, past: KeysValues, places: Places, heads: int, scale: float | None
) -> tuple[Tensor, KeysValues]:
    width = query.shape[1]
    q, k, v = (split_heads(part, heads) for part in (query, key, value))
    first = places.last.long() + 1 - width
    if width == int(places.longest):
        first = torch.zeros_like(first)
    columns = first[:, None] + torch.arange(width)
    rows = torch.arange(query.shape[0])[:, None]
    keys, values = past.keys.clone(), past.values.clone()
    keys[rows, :, columns] = k.transpose(1, 2)
    values[rows, :, columns] = v.transpose(1, 2)
    scores = (q @ keys.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if places.bias is not None:
        scores[..., : places.bias.shape[-1]] += places.bias
    unseen = torch.arange(keys.shape[2]) > columns[:, None, :, None]
    weights = scores.masked_fill(unseen, -torch.inf).softmax(-1)
    # Unfilled places may hold anything, also what is not a number; zero times that is not zero.
    filled = torch.where(unseen[:, :, -1, :, None], 0.0, values)
    return join_heads(weights @ filled), KeysValues(keys, values)


def memory_keys_values(keys: Tensor, values: Tensor, heads: int, scale: float | None = None) -> KeysValues:
    """Lays out what cross-attention reads at every step, once per image.

    Args:
        keys, values: projections of the memory, [B, S, H·D].
        scale: of the dot products; 1/√D where `None`.

    Returns:
        Keys, scaled, [B, H, S, D], and values, transposed, [B, H, D, S].
    """
    split = split_heads(keys, heads)
    scaled = split * (split.shape[-1] ** -0.5 if scale is None else scale)
    return KeysValues(scaled.contiguous(), split_heads(values, heads).transpose(2, 3).contiguous())


def cross_attention(query: Tensor, memory: KeysValues, mask: Tensor | None = None) -> Tensor:
    """Attention of rows over their image's memory; an image's rows ride on the query axis.

    Args:
        query: [B·k, W, H·D], an image's k rows neighbours.
        memory: of B images, from `memory_keys_values`.
        mask: [B, S], added to the scores (large and negative where the memory is padding).

    Returns:
        Mixed values [B·k, W, H·D].
    """
    images, heads, _, depth = memory.keys.shape
    # The memory is the left factor of both products: engines repack the right one, here the few rows, at every call.
    q = query.reshape(images, -1, heads, depth).permute(0, 2, 3, 1)
    scores = memory.keys @ q
    if mask is not None:
        scores = scores + mask[:, None, :, None]
    mixed = memory.values @ scores.softmax(2)
    return mixed.permute(0, 3, 1, 2).reshape(query.shape)


def place_prefix(words: Tensor, prefix: Tensor, position: Tensor) -> Tensor:
    """Puts an image's prefix where the first positions of its rows are; the ids that stand there count for nothing.

    Args:
        words: embeddings of tokens, [B·k, W, C], an image's k rows neighbours.
        prefix: [B, Q, C], never expanded.
        position: of each token, [B·k, W].

    Returns:
        [B·k, W, C]: the prefix below position Q, `words` from there on.
    """
    images, length, width = prefix.shape
    place = position.reshape(images, -1, 1).clamp(max=length - 1)
    found = prefix.gather(1, place.expand(-1, -1, width)).reshape(words.shape)
    return torch.where((position < length)[..., None], found, words)


def last_tokens(hidden: Tensor, new_length: Tensor) -> Tensor:
    """The state of each row's last token, [R, W, C] -> [R, C]; prompts stand at the left.

    Taken before the vocabulary's layer, so that a prompt of W tokens does not cost W of its products.
    """
    index = (new_length.long() - 1)[:, None, None].expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, index).squeeze(1)


def padding_mask(present: Tensor) -> Tensor:
    """What is added to scores: 0 where `present` is true, and a number that no score outweighs where it is not."""
    return torch.where(present, 0.0, -1e9)


def split_heads(joined: Tensor, heads: int) -> Tensor:
    """[N, L, H·D] -> [N, H, L, D]."""
    return torch.unflatten(joined, -1, (heads, -1)).transpose(1, 2)


def join_heads(split: Tensor) -> Tensor:
    """[N, H, L, D] -> [N, L, H·D]."""
    return split.transpose(1, 2).flatten(2)
