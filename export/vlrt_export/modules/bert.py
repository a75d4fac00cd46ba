"""BERT's layers (Devlin et al., arXiv 1810.04805) as an encoder of texts and as a decoder over in-place caches."""

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
    split_heads,
)
from vlrt_export.modules.dense import Dense, activate, embedding
from vlrt_export.modules.gpt2 import DecoderSizes


@dataclass(frozen=True)
class Positions:
    """How positions are numbered: the first one's row of the embedding, and what stands at a padding token.

    Args:
        first: 0 for BERT, the padding id + 1 for RoBERTa.
        pad_id: RoBERTa gives the padding id that same row wherever it stands; `None` for BERT.
    """

    first: int = 0
    pad_id: int | None = None


class BertEmbeddings(nn.Module):
    """Tokens [N, L] at positions [N, L] to first states [N, L, C].

    A checkpoint's embedding of token type 0, the only one that decoders use, is added to that of the positions.
    """

    def __init__(self, sizes: DecoderSizes, positions: Positions) -> None:
        super().__init__()
        self.positions = positions
        self.word = embedding(sizes.vocabulary, sizes.width)
        self.position = embedding(sizes.positions, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)

    def forward(self, token: Tensor, position: Tensor) -> Tensor:
        place = position + self.positions.first
        if self.positions.pad_id is not None:
            place = torch.where(token == self.positions.pad_id, self.positions.pad_id, place)
        return cast(Tensor, self.norm(self.word(token) + self.position(place)))


class _Attention(nn.Module):
    """Self-attention: over a cache in a decoder, over the whole masked text in an encoder."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv = Dense(sizes.width, 3 * sizes.width)
        self.output = Dense(sizes.width, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)

    def step(self, x: Tensor, past: KeysValues, places: Places) -> tuple[Tensor, KeysValues]:
        query, key, value = self.qkv(x).chunk(3, -1)
        mixed, present = cached_attention(query, key, value, past, places, self.heads)
        return self.norm(self.output(mixed) + x), present

    def encode(self, x: Tensor, mask: Tensor) -> Tensor:
        """States [N, L, C] under an additive mask [N, L]."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3) + mask[:, None, None, :]
        return cast(Tensor, self.norm(self.output(join_heads(scores.softmax(-1) @ value)) + x))


class _CrossAttention(nn.Module):
    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query = Dense(sizes.width, sizes.width)
        self.key_value = Dense(sizes.memory_width, 2 * sizes.width)
        self.output = Dense(sizes.width, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)

    def memory(self, states: Tensor) -> KeysValues:
        keys, values = self.key_value(states).chunk(2, -1)
        return memory_keys_values(keys, values, self.heads)

    def forward(self, x: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        return cast(Tensor, self.norm(self.output(cross_attention(self.query(x), memory, mask)) + x))


class BertLayer(nn.Module):
    """One post-norm layer; cross-attention where `sizes.memory_width` is not 0."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.activation = sizes.activation
        self.attention = _Attention(sizes)
        self.crossattention = _CrossAttention(sizes) if sizes.memory_width else None
        self.intermediate = Dense(sizes.width, sizes.feed_forward)
        self.output = Dense(sizes.feed_forward, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)

    def step(
        self, x: Tensor, past: KeysValues, places: Places, memory: KeysValues | None, mask: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        x, present = self.attention.step(x, past, places)
        return self._rest(x, memory, mask), present

    def encode(self, x: Tensor, text_mask: Tensor, states: Tensor | None) -> Tensor:
        """Texts [N·k, L, C] with mask [N·k, L], reading image states [N, S, M] where given."""
        x = self.attention.encode(x, text_mask)
        return self._rest(x, self.memory(states) if states is not None else None, None)

    def memory(self, states: Tensor) -> KeysValues:
        """Cross-attention's keys and values from encoder states [B, S, M]."""
        if self.crossattention is None:
            raise ValueError("a layer without cross-attention has no memory")
        return self.crossattention.memory(states)

    def _rest(self, x: Tensor, memory: KeysValues | None, mask: Tensor | None) -> Tensor:
        if memory is not None and self.crossattention is not None:
            x = self.crossattention(x, memory, mask)
        return cast(Tensor, self.norm(self.output(activate(self.intermediate(x), self.activation)) + x))


class BertEncoder(nn.Module):
    """Ids [N·k, L] and their additive padding mask to states [N·k, L, C], reading image states [N, S, M] or not."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embeddings = BertEmbeddings(sizes, Positions())
        self.layer = nn.ModuleList(BertLayer(sizes) for _ in range(sizes.layers))

    def forward(self, ids: Tensor, mask: Tensor, states: Tensor | None = None) -> Tensor:
        x = self.embeddings(ids, torch.arange(ids.shape[1]).expand_as(ids))
        for layer in self.layer:
            x = cast(BertLayer, layer).encode(x, mask, states)
        return cast(Tensor, x)


class BertDecoder(nn.Module):
    """BERT as a causal decoder with its language-model head, as BLIP's text decoder and `BertLMHeadModel` are.

    Args:
        sizes: of the transformer; `positions` counts the rows of the embedding.
        positions: how they are numbered.
        tied: whether the last layer's matrix is the token embedding.
    """

    def __init__(self, sizes: DecoderSizes, positions: Positions | None = None, tied: bool = True) -> None:
        super().__init__()
        self.sizes = sizes
        self.embeddings = BertEmbeddings(sizes, positions or Positions())
        self.layer = nn.ModuleList(BertLayer(sizes) for _ in range(sizes.layers))
        self.transform = Dense(sizes.width, sizes.width)
        self.transform_norm = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.transform_activation = sizes.activation
        self.head = self.embeddings.word if tied else embedding(sizes.vocabulary, sizes.width)
        self.head_bias = nn.Parameter(torch.zeros(sizes.vocabulary))

    def memory(self, states: Tensor) -> list[KeysValues]:
        """Keys and values of every layer's cross-attention from encoder states [B, S, M]."""
        return [cast(BertLayer, layer).memory(states) for layer in self.layer]

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        """First states [R, W, C] of tokens [R, W] at their positions."""
        return cast(Tensor, self.embeddings(token, position))

    def forward(
        self,
        embedded: Tensor,
        new_length: Tensor,
        places: Places,
        past: list[KeysValues],
        memory: list[KeysValues] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """One call over R rows of W tokens; see `vlrt_export.modules.gpt2.Gpt2.forward`."""
        x, present = embedded, []
        for number, layer in enumerate(self.layer):
            own = memory[number] if memory else None
            x, extended = cast(BertLayer, layer).step(x, past[number], places, own, mask)
            present.append(extended)
        x = activate(self.transform(last_tokens(x, new_length)), self.transform_activation)
        return F.linear(self.transform_norm(x), self.head.weight, self.head_bias), present
