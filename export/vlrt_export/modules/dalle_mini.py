"""DALL·E mini's text encoder and image decoder: BART with gated feed-forward layers and norms on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import (
    KeysValues,
    Places,
    cached_attention,
    cross_attention,
    join_heads,
    last_tokens,
    memory_keys_values,
    padding_mask,
    split_heads,
)
from vlrt_export.modules.dense import Dense, embedding


@dataclass(frozen=True)
class DalleMiniSizes:
    """Sizes of either half.

    Args:
        vocabulary: ids that it reads.
        positions: most of them.
        width, layers, heads: of the transformer.
        inner: width between the gated layers.
        codes: of the codebook that the decoder writes; 0 for the encoder.
    """

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int
    inner: int
    codes: int = 0

    def __post_init__(self) -> None:
        if min(self.vocabulary, self.positions, self.layers, self.heads, self.inner) < 1 or self.width % self.heads:
            raise ValueError(f"{self.layers} layers of width {self.width} and {self.heads} heads")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class _SelfAttention(nn.Module):
    def __init__(self, sizes: DalleMiniSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.before, self.after = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.qkv = Dense(sizes.width, 3 * sizes.width, bias=False)
        self.output = Dense(sizes.width, sizes.width, bias=False)

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """States [N, L, C] under the additive padding mask [N, L]."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(self.before(x)).chunk(3, -1))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3) + mask[:, None, None, :]
        return cast(Tensor, x + self.after(self.output(join_heads(scores.softmax(-1) @ value))))

    def step(self, x: Tensor, past: KeysValues, places: Places) -> tuple[Tensor, KeysValues]:
        query, key, value = self.qkv(self.before(x)).chunk(3, -1)
        mixed, present = cached_attention(query, key, value, past, places, self.heads)
        return x + self.after(self.output(mixed)), present


class _CrossAttention(nn.Module):
    def __init__(self, sizes: DalleMiniSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.before, self.after = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.query = Dense(sizes.width, sizes.width, bias=False)
        self.key_value = Dense(sizes.width, 2 * sizes.width, bias=False)
        self.output = Dense(sizes.width, sizes.width, bias=False)

    def memory(self, states: Tensor) -> KeysValues:
        keys, values = self.key_value(states).chunk(2, -1)
        return memory_keys_values(keys, values, self.heads)

    def forward(self, x: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        mixed = cross_attention(self.query(self.before(x)), memory, mask)
        return cast(Tensor, x + self.after(self.output(mixed)))


class _Gated(nn.Module):
    """GELU of one projection times the other (Shazeer, arXiv 2002.05202), with norms before each product."""

    def __init__(self, sizes: DalleMiniSizes) -> None:
        super().__init__()
        self.ln0, self.ln1 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.inner)
        self.gates = Dense(sizes.width, 2 * sizes.inner, bias=False)
        self.output = Dense(sizes.inner, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gates(self.ln0(x)).chunk(2, -1)
        return cast(Tensor, x + self.output(self.ln1(F.gelu(gate) * value)))


class _EncoderLayer(nn.Module):
    def __init__(self, sizes: DalleMiniSizes) -> None:
        super().__init__()
        self.attention, self.gated = _SelfAttention(sizes), _Gated(sizes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.gated(self.attention.encode(x, mask)))


class _DecoderLayer(nn.Module):
    def __init__(self, sizes: DalleMiniSizes) -> None:
        super().__init__()
        self.attention, self.cross, self.gated = _SelfAttention(sizes), _CrossAttention(sizes), _Gated(sizes)

    def forward(
        self, x: Tensor, past: KeysValues, places: Places, memory: KeysValues, mask: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        x, present = self.attention.step(x, past, places)
        return self.gated(self.cross(x, memory, mask)), present


class _Embedding(nn.Module):
    def __init__(self, sizes: DalleMiniSizes) -> None:
        super().__init__()
        self.words = embedding(sizes.vocabulary, sizes.width)
        self.places = embedding(sizes.positions, sizes.width)
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.words(token) + self.places(position)))


class DalleMiniEncoder(nn.Module):
    """Ids [N, L], padded at the end, to states [N, L, C] and an additive mask [N, L] of the padding."""

    def __init__(self, sizes: DalleMiniSizes, pad_id: int) -> None:
        super().__init__()
        self.sizes, self.pad_id = sizes, pad_id
        self.embedding = _Embedding(sizes)
        self.layers = nn.ModuleList(_EncoderLayer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        mask = padding_mask(input_ids != self.pad_id)
        x = self.embedding(input_ids, torch.arange(input_ids.shape[1]))
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x), mask


class DalleMiniDecoder(nn.Module):
    """Codes and the encoder's states to the logits of the next code; it reads more ids than it writes."""

    def __init__(self, sizes: DalleMiniSizes) -> None:
        super().__init__()
        self.layout = sizes
        self.embedding = _Embedding(sizes)
        self.layers = nn.ModuleList(_DecoderLayer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = embedding(sizes.codes, sizes.width)

    @property
    def sizes(self) -> DalleMiniSizes:
        """As the step's graphs count: the vocabulary is the codes."""
        own = self.layout
        return DalleMiniSizes(own.codes, own.positions, own.width, own.layers, own.heads, own.inner, own.codes)

    def memory(self, states: Tensor) -> list[KeysValues]:
        """Keys and values of every layer's cross-attention from encoder states [B, S, C]."""
        return [cast(_DecoderLayer, layer).cross.memory(states) for layer in self.layers]

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        """First states [R, W, C] of codes [R, W] at their positions."""
        return cast(Tensor, self.embedding(token, position))

    def forward(
        self,
        embedded: Tensor,
        new_length: Tensor,
        places: Places,
        past: list[KeysValues],
        memory: list[KeysValues] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """One call over R rows of W codes; see `vlrt_export.modules.gpt2.Gpt2.forward`."""
        if memory is None:
            raise ValueError("the image decoder reads its text")
        x, present = embedded, []
        for layer, before, own in zip(self.layers, past, memory):
            x, extended = layer(x, before, places, own, mask)
            present.append(extended)
        return F.linear(self.norm(last_tokens(x, new_length)), self.head.weight), present
