"""The pre-norm transformer that both towers of CLIP are made of, in plain products that trace plainly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class TransformerSizes:
    """Model width, layers, heads, width of the feed-forward part, its activation, epsilon of the layer norms."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads or min(self.width, self.layers, self.feed_forward) < 1:
            raise ValueError(f"a width of {self.width} does not split over {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation `{self.activation}` is not one of {', '.join(ACTIVATIONS)}")


class Attention(nn.Module):
    """Multi-head self-attention with one product for queries, keys and values; names as in the original."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [N, L, W] to [N, L, W]; `mask` [L, L] is added to the scores."""
        query, key, value = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        return self._mix(query, key, value, mask)

    def first(self, x: Tensor) -> Tensor:
        """What `forward` gives at the first position only: [N, L, W] to [N, 1, W]."""
        width = x.shape[-1]
        query = F.linear(x[:, :1], self.in_proj_weight[:width], self.in_proj_bias[:width])
        key, value = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, -1)
        return self._mix(query, key, value, None)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        parts: tuple[Any, ...] = (query, key, value)  # torch's `unflatten` has no types
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        if mask is not None:
            scores = scores + mask
        return cast(Tensor, self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two linear layers with GELU, or its sigmoid approximation, between them."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.activation = sizes.activation
        self.c_fc = nn.Linear(sizes.width, sizes.feed_forward)
        self.c_proj = nn.Linear(sizes.feed_forward, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)
        active = F.gelu(hidden) if self.activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
        return cast(Tensor, self.c_proj(active))


class ResidualAttentionBlock(nn.Module):
    """One layer: attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.attn = Attention(sizes.width, sizes.heads)
        self.ln_1 = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.mlp = FeedForward(sizes)
        self.ln_2 = nn.LayerNorm(sizes.width, sizes.epsilon)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return cast(Tensor, x + self.mlp(self.ln_2(x)))

    def first(self, x: Tensor) -> Tensor:
        """What `forward` gives at the first position only: [N, L, W] to [N, 1, W]."""
        x = x[:, :1] + self.attn.first(self.ln_1(x))
        return cast(Tensor, x + self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """A stack of layers.

    Source: Radford et al. (arXiv 2103.00020), section 2.4; reproduces the layers of openai/CLIP ``model.py``.
    """

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(sizes) for _ in range(sizes.layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map [N, L, W] to [N, L, W] under an additive `mask` [L, L]."""
        for block in self.resblocks:
            x = block(x, mask)
        return x

    def first(self, x: Tensor) -> Tensor:
        """The result at the first position only [N, W]; the last layer computes nothing else."""
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x)
        return cast(ResidualAttentionBlock, last).first(x).squeeze(1)
