"""The text encoder of the original latent diffusion model: a pre-norm transformer that attends everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import join_heads, split_heads
from vlrt_export.modules.dense import Dense, activate


@dataclass(frozen=True)
class LdmBertSizes:
    """Numbers of an `LDMBertModel`; the heads together need not be as wide as the model."""

    vocabulary: int = 30522
    context: int = 77
    width: int = 1280
    layers: int = 32
    heads: int = 8
    head_width: int = 64
    feed_forward: int = 5120
    activation: str = "gelu"


class LdmBert(nn.Module):
    """Ids [N, L] to states [N, L, W]; padding is attended to like every token, as the model was trained.

    Source: Rombach et al. (arXiv 2112.10752), section 4.3.1; reproduces diffusers' `LDMBertModel` without a mask.
    """

    def __init__(self, sizes: LdmBertSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.places = nn.Parameter(torch.randn(sizes.context, sizes.width) * sizes.width**-0.5)
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.places[: input_ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.norm(x))


class _Layer(nn.Module):
    def __init__(self, sizes: LdmBertSizes) -> None:
        super().__init__()
        inner = sizes.heads * sizes.head_width
        self.heads, self.scale, self.activation = sizes.heads, sizes.head_width**-0.5, sizes.activation
        self.norm1, self.norm2 = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.qkv = Dense(sizes.width, 3 * inner, bias=False)
        self.output = Dense(inner, sizes.width)
        self.fc1, self.fc2 = Dense(sizes.width, sizes.feed_forward), Dense(sizes.feed_forward, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        weights = ((query * self.scale) @ key.transpose(2, 3)).softmax(-1)
        x = x + self.output(join_heads(weights @ value))
        return cast(Tensor, x + self.fc2(activate(self.fc1(self.norm2(x)), self.activation)))
