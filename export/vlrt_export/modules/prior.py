"""The diffusion prior of unCLIP: a causal transformer from a sentence to the embedding of an image of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import join_heads, padding_mask, split_heads
from vlrt_export.modules.dense import Dense

_NEW = 3
"""Tokens that change over the steps: the time, the noisy embedding, and the one that the prediction is read off."""


@dataclass(frozen=True)
class PriorSizes:
    """What decides the shape of a prior.

    Args:
        embedding: length of an embedding.
        text: places of the sentence.
        heads, head_width: of the attention; the transformer is their product wide.
    """

    embedding: int
    text: int
    layers: int
    heads: int
    head_width: int

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    @property
    def prefix(self) -> int:
        """Tokens that are constant over the steps: the sentence's, and its embedding."""
        return self.text + 1


class Prior(nn.Module):
    """Weights of both graphs of a prior; see `PriorPrompt` and `PriorStep`.

    Its attention is causal, and what changes over the steps stands behind the sentence. So keys and values of the
    sentence are computed once, and a step has three tokens instead of eighty.

    Source: Ramesh et al. (arXiv 2204.06125), section 2.2; reproduces diffusers' ``PriorTransformer`` with the
    ``prd`` token.
    """

    def __init__(self, sizes: PriorSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.time1, self.time2 = Dense(sizes.width, sizes.width), Dense(sizes.width, sizes.width)
        self.sample = Dense(sizes.embedding, sizes.width)
        self.embedding = Dense(sizes.embedding, sizes.width)
        self.states = Dense(sizes.embedding, sizes.width)
        self.position = nn.Parameter(torch.zeros(1, sizes.prefix + _NEW, sizes.width))
        self.read = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.head = Dense(sizes.width, sizes.embedding)
        self.mean = nn.Parameter(torch.zeros(1, sizes.embedding))
        self.std = nn.Parameter(torch.ones(1, sizes.embedding))


class _Layer(nn.Module):
    """Self-attention and a feed-forward part, each on a normalised copy and added back."""

    def __init__(self, sizes: PriorSizes) -> None:
        super().__init__()
        self.heads, self.scale = sizes.heads, sizes.head_width**-0.5
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.qkv = Dense(sizes.width, 3 * sizes.width)
        self.output = Dense(sizes.width, sizes.width)
        self.inner, self.outer = Dense(sizes.width, 4 * sizes.width), Dense(4 * sizes.width, sizes.width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled), keys and values [R, H, T, D] of states [R, T, C]."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        return query * self.scale, key, value

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """What follows the attention."""
        x = x + self.output(join_heads(mixed))
        return cast(Tensor, x + self.outer(F.gelu(self.inner(self.norm2(x)))))


class PriorPrompt(nn.Module):
    """A sentence as the steps of the prior read it: keys and values of every layer, run once."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, prompt_states: Tensor, text_embedding: Tensor, prompt_mask: Tensor) -> tuple[Tensor, ...]:
        """Runs the tokens that are constant over the steps.

        Args:
            prompt_states: [N, L, D], the text encoder's; L is the prior's own.
            text_embedding: [N, D].
            prompt_mask: int64 [N, L], 1 where there is a token.

        Returns:
            What is added to the scores [N, 1, 1, L + 1], then keys [N, H, D, L + 1] of every layer, then values
            [N, H, L + 1, D].
        """
        prior, length = self.prior, self.prior.sizes.prefix
        x = torch.cat([prior.states(prompt_states), prior.embedding(text_embedding)[:, None]], 1)
        x = x + prior.position[:, :length]
        bias = F.pad(padding_mask(prompt_mask > 0), (0, 1))[:, None, None]
        mask = bias + torch.full((length, length), -math.inf).triu(1)
        keys, values = [], []
        for layer in cast("list[_Layer]", prior.layers):
            query, key, value = layer.split(x)
            keys.append(key.transpose(2, 3))
            values.append(value)
            x = layer.finish(x, (query @ keys[-1] + mask).softmax(-1) @ value)
        return (bias, *keys, *values)


class PriorStep(nn.Module):
    """One step of the prior: sample [R, D] and timestep [R] to the clean embedding [R, D], with what is constant."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, sample: Tensor, timestep: Tensor, bias: Tensor, *memory: Tensor) -> Tensor:
        """Runs the tokens that change; `bias` and `memory` are what `PriorPrompt` gives."""
        prior, length = self.prior, self.prior.sizes.prefix
        keys, values = memory[: len(prior.layers)], memory[len(prior.layers) :]
        time = prior.time2(F.silu(prior.time1(_sinusoids(timestep, prior.sizes.width))))
        read = prior.read.expand(sample.shape[0], -1, -1)
        x = torch.cat([time[:, None], prior.sample(sample)[:, None], read], 1) + prior.position[:, length:]
        later = torch.full((_NEW, _NEW), -math.inf).triu(1)
        for layer, key, value in zip(cast("list[_Layer]", prior.layers), keys, values):
            q, k, v = layer.split(x)
            shares = torch.cat([q @ key + bias, q @ k.transpose(2, 3) + later], -1).softmax(-1)
            x = layer.finish(x, shares[..., :length] @ value + shares[..., length:] @ v)
        return cast(Tensor, prior.head(prior.norm(x[:, -1])))


class PriorEmbedding(nn.Module):
    """The prior's result [N, D], which was trained on normalised embeddings, as an embedding of CLIP's [N, D]."""

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.mean, self.std = prior.mean, prior.std

    def forward(self, latents: Tensor) -> Tensor:
        return latents * self.std + self.mean


def _sinusoids(timestep: Tensor, width: int) -> Tensor:
    """Cosines and sines [R, width] of timesteps [R] at falling frequencies (Vaswani et al., section 3.5)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000) / half))
    angles = timestep[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)
