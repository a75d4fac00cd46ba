"""GPT-2 (Radford et al. 2019) as one step over in-place caches, with cross-attention where a vision model feeds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vlrt.errors import VlrtError
from vlrt_export.modules.attention_kv import (
    KeysValues,
    Places,
    cached_attention,
    cross_attention,
    last_tokens,
    memory_keys_values,
    place_prefix,
)
from vlrt_export.modules.dense import ACTIVATIONS, Dense, activate, embedding


@dataclass(frozen=True)
class DecoderSizes:
    """What decides a transformer decoder's shape.

    Args:
        vocabulary, positions: rows of the two embeddings.
        width, layers, heads, feed_forward: of the transformer.
        memory_width: width of what cross-attention reads; 0 where there is no cross-attention.
        activation: transformers' name.
        epsilon: of the layer norms.
    """

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    memory_width: int = 0
    activation: str = "gelu"
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not split over {self.heads} heads")
        if self.head_width % 8:
            what = f"attention heads of {self.head_width} are not served, the cache's operator wants multiples of 8"
            raise VlrtError(what, "check `config.json`, or report this with the model")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation `{self.activation}` is not one of {', '.join(ACTIVATIONS)}")

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class _SelfAttention(nn.Module):
    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.c_attn = Dense(sizes.width, 3 * sizes.width)
        self.c_proj = Dense(sizes.width, sizes.width)

    def forward(self, x: Tensor, past: KeysValues, places: Places) -> tuple[Tensor, KeysValues]:
        query, key, value = self.c_attn(x).chunk(3, -1)
        mixed, present = cached_attention(query, key, value, past, places, self.heads)
        return self.c_proj(mixed), present


class _CrossAttention(nn.Module):
    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.q_attn = Dense(sizes.width, sizes.width)
        self.c_attn = Dense(sizes.memory_width, 2 * sizes.width)
        self.c_proj = Dense(sizes.width, sizes.width)

    def memory(self, states: Tensor) -> KeysValues:
        keys, values = self.c_attn(states).chunk(2, -1)
        return memory_keys_values(keys, values, self.heads)

    def forward(self, x: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        return cast(Tensor, self.c_proj(cross_attention(self.q_attn(x), memory, mask)))


class _FeedForward(nn.Module):
    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.activation = sizes.activation
        self.c_fc = Dense(sizes.width, sizes.feed_forward)
        self.c_proj = Dense(sizes.feed_forward, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.c_proj(activate(self.c_fc(x), self.activation)))


class _Layer(nn.Module):
    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.attn = _SelfAttention(sizes)
        self.ln_2 = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.mlp = _FeedForward(sizes)
        if sizes.memory_width:
            self.ln_cross_attn = nn.LayerNorm(sizes.width, sizes.epsilon)
            self.crossattention = _CrossAttention(sizes)

    def forward(
        self, x: Tensor, past: KeysValues, places: Places, memory: KeysValues | None, mask: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        mixed, present = self.attn(self.ln_1(x), past, places)
        x = x + mixed
        if memory is not None:
            x = x + self.crossattention(self.ln_cross_attn(x), memory, mask)
        return x + self.mlp(self.ln_2(x)), present


class Gpt2(nn.Module):
    """Tokens to the logits of what follows them; parameters are named as in transformers' `GPT2Model`.

    Args:
        sizes: of the transformer.
        tied: whether the last layer's matrix is the token embedding.
    """

    def __init__(self, sizes: DecoderSizes, tied: bool = True) -> None:
        super().__init__()
        self.sizes = sizes
        self.wte = embedding(sizes.vocabulary, sizes.width)
        self.wpe = embedding(sizes.positions, sizes.width)
        self.h = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.ln_f = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.lm_head = self.wte if tied else embedding(sizes.vocabulary, sizes.width)

    def memory(self, states: Tensor) -> list[KeysValues]:
        """Keys and values of every layer's cross-attention from encoder states [B, S, M]."""
        return [layer.crossattention.memory(states) for layer in self.h]  # type: ignore[union-attr, operator]

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        """First states [R, W, C] of tokens [R, W] at their positions."""
        return cast(Tensor, self.wte(token) + self.wpe(position))

    def embed_prefixed(self, prefix: Tensor, token: Tensor, position: Tensor) -> Tensor:
        """The same where the first positions of B images are taken by their prefix [B, Q, C]."""
        return place_prefix(self.wte(token), prefix, position) + cast(Tensor, self.wpe(position))

    def forward(
        self,
        embedded: Tensor,
        new_length: Tensor,
        places: Places,
        past: list[KeysValues],
        memory: list[KeysValues] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """One call over R rows of W tokens, R = B·k.

        Args:
            embedded: [R, W, C].
            new_length: tokens of each row in this call, [R] int32.
            places: of each row's last token.
            past: caches by layer.
            memory: of B images by layer, and its additive padding `mask` [B, S].

        Returns:
            logits [R, V] after each row's last token, and the extended caches.
        """
        x, present = embedded, []
        for number, layer in enumerate(self.h):
            x, extended = layer(x, past[number], places, memory[number] if memory else None, mask)
            present.append(extended)
        return F.linear(self.ln_f(last_tokens(x, new_length)), self.lm_head.weight), present
