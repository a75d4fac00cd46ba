"""T5 (Raffel et al., arXiv 1910.10683; gated as in T5 1.1 and Flan-T5): encoder, and decoder over in-place caches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

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
from vlrt_export.modules.dense import ACTIVATIONS, Dense, activate, embedding
from vlrt_export.modules.rms_norm import RmsNorm

_SCALE = 1.0
"""Of the dot products: T5 has its initialisation do what others divide by √D for."""


T5_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
"""What transformers' `T5Config` means by a key that a configuration leaves out."""


@dataclass(frozen=True)
class T5Sizes:
    """What decides the shape of a T5.

    Args:
        vocabulary: rows of the one embedding of encoder and decoder.
        width: of the states; heads of `head_width` need not add up to it.
        layers, encoder_layers: of decoder and encoder.
        buckets, farthest: distances share a bias, logarithmically from half the buckets on, all beyond `farthest` one.
        activation, gated: of the feed-forward.
        scaled_head: whether states are multiplied by 1/√width before the last layer, as with a tied one.
        epsilon: of the norms.
    """

    vocabulary: int
    width: int
    layers: int
    encoder_layers: int
    heads: int
    head_width: int
    feed_forward: int
    buckets: int = 32
    farthest: int = 128
    activation: str = "gelu_new"
    gated: bool = True
    scaled_head: bool = False
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.heads, self.head_width, self.layers, self.encoder_layers) < 1 or self.farthest <= self.buckets // 2:
            raise ValueError(f"{self.layers} layers of {self.heads} heads, {self.buckets} buckets to {self.farthest}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation `{self.activation}` is not one of {', '.join(ACTIVATIONS)}")

    @property
    def inner(self) -> int:
        return self.heads * self.head_width


def bucket_of_distance(buckets: int, farthest: int) -> list[int]:
    """The bucket of each distance from 0 to `farthest`, in one direction.

    Source: reproduces ``T5Attention._relative_position_bucket`` of transformers.
    """
    exact = buckets // 2
    far = torch.arange(exact, farthest + 1, dtype=torch.float32)
    # In float32 as there: at whole steps the rounding decides the bucket.
    steps = exact + (torch.log(far / exact) / math.log(farthest / exact) * (buckets - exact)).long()
    return [*range(exact), *steps.clamp(max=buckets - 1).tolist()]


class _SelfAttention(nn.Module):
    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.norm = RmsNorm(sizes.width, sizes.epsilon)
        self.qkv = Dense(sizes.width, 3 * sizes.inner, bias=False)
        self.output = Dense(sizes.inner, sizes.width, bias=False)

    def encode(self, x: Tensor, bias: Tensor) -> Tensor:
        """States [N, L, C] under a bias [N, H, L, L]."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(self.norm(x)).chunk(3, -1))
        shares = (query @ key.transpose(2, 3) + bias).softmax(-1)
        return cast(Tensor, x + self.output(join_heads(shares @ value)))

    def step(self, x: Tensor, past: KeysValues, places: Places) -> tuple[Tensor, KeysValues]:
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        mixed, present = cached_attention(query, key, value, past, places, self.heads, _SCALE)
        return x + self.output(mixed), present


class _CrossAttention(nn.Module):
    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.norm = RmsNorm(sizes.width, sizes.epsilon)
        self.query = Dense(sizes.width, sizes.inner, bias=False)
        self.key_value = Dense(sizes.width, 2 * sizes.inner, bias=False)
        self.output = Dense(sizes.inner, sizes.width, bias=False)

    def memory(self, states: Tensor) -> KeysValues:
        keys, values = self.key_value(states).chunk(2, -1)
        return memory_keys_values(keys, values, self.heads, _SCALE)

    def forward(self, x: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        return cast(Tensor, x + self.output(cross_attention(self.query(self.norm(x)), memory, mask)))


class _FeedForward(nn.Module):
    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.activation = sizes.activation
        self.norm = RmsNorm(sizes.width, sizes.epsilon)
        self.inner = Dense(sizes.width, sizes.feed_forward, bias=False)
        self.gate = Dense(sizes.width, sizes.feed_forward, bias=False) if sizes.gated else None
        self.output = Dense(sizes.feed_forward, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        inner = activate(self.inner(normal), self.activation)
        if self.gate is not None:
            inner = inner * self.gate(normal)
        return cast(Tensor, x + self.output(inner))


class _EncoderLayer(nn.Module):
    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.attention = _SelfAttention(sizes)
        self.mlp = _FeedForward(sizes)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return cast(Tensor, self.mlp(self.attention.encode(x, bias)))


class _DecoderLayer(nn.Module):
    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.attention = _SelfAttention(sizes)
        self.cross = _CrossAttention(sizes)
        self.mlp = _FeedForward(sizes)

    def forward(
        self, x: Tensor, past: KeysValues, places: Places, memory: KeysValues, mask: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        x, present = self.attention.step(x, past, places)
        return self.mlp(self.cross(x, memory, mask)), present


class T5Encoder(nn.Module):
    """An image's embeddings [N, Q, C] and a prompt [N, L] behind them to states [N, Q + L, C] and a padding mask."""

    def __init__(self, sizes: T5Sizes, pad_id: int) -> None:
        super().__init__()
        self.sizes, self.pad_id = sizes, pad_id
        self.words = embedding(sizes.vocabulary, sizes.width)
        self.bias = embedding(sizes.buckets, sizes.heads)
        self.layers = nn.ModuleList(_EncoderLayer(sizes) for _ in range(sizes.encoder_layers))
        self.norm = RmsNorm(sizes.width, sizes.epsilon)

    def forward(self, query_states: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([query_states, self.words(input_ids)], 1)
        mask = F.pad(padding_mask(input_ids != self.pad_id), (query_states.shape[1], 0))
        bias = self._bias(x.shape[1]) + mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x), mask

    def _bias(self, length: int) -> Tensor:
        """[H, L, L] by distance; half of the buckets are for what stands behind."""
        half = self.sizes.buckets // 2
        table = torch.tensor(bucket_of_distance(half, self.sizes.farthest))
        places = torch.arange(length)
        ahead = places[None, :] - places[:, None]
        bucket = table[ahead.abs().clamp(max=self.sizes.farthest)] + torch.where(ahead > 0, half, 0)
        return cast(Tensor, self.bias(bucket).permute(2, 0, 1))


class T5Decoder(nn.Module):
    """Tokens and the encoder's states to the logits of what follows.

    Args:
        sizes: of the transformer.
        tied: whether the last layer's matrix is the token embedding.
    """

    def __init__(self, sizes: T5Sizes, tied: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.words = embedding(sizes.vocabulary, sizes.width)
        self.bias = embedding(sizes.buckets, sizes.heads)
        self.layers = nn.ModuleList(_DecoderLayer(sizes) for _ in range(sizes.layers))
        self.norm = RmsNorm(sizes.width, sizes.epsilon)
        self.head = self.words if tied else embedding(sizes.vocabulary, sizes.width)

    def memory(self, states: Tensor) -> list[KeysValues]:
        """Keys and values of every layer's cross-attention from encoder states [B, S, C]."""
        return [cast(_DecoderLayer, layer).cross.memory(states) for layer in self.layers]

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        """First states [R, W, C] of tokens [R, W]; places are told by distance alone."""
        return cast(Tensor, self.words(token))

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
        if memory is None:
            raise ValueError("a T5 decoder reads its encoder")
        first = places.last - new_length + 1
        position = first[:, None] + torch.arange(embedded.shape[1])
        places = Places(places.last, places.longest, self._bias(position, places.longest))
        x, present = embedded, []
        for layer, before, own in zip(self.layers, past, memory):
            x, extended = layer(x, before, places, own, mask)
            present.append(extended)
        x = self.norm(last_tokens(x, new_length))
        if self.sizes.scaled_head:
            x = x * self.sizes.width**-0.5
        return F.linear(x, self.head.weight), present

    def _bias(self, position: Tensor, longest: Tensor) -> Tensor:
        """[R, H, W, T] by the distance of tokens at `position` [R, W] from each place up to the longest row's end."""
        behind = (position[:, :, None] - torch.arange(longest.item())).clamp(0, self.sizes.farthest)
        table = torch.tensor(bucket_of_distance(self.sizes.buckets, self.sizes.farthest))
        return cast(Tensor, self.bias(table[behind]).permute(0, 3, 1, 2))
