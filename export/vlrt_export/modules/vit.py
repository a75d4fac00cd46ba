"""A vision transformer (Dosovitskiy et al., arXiv 2010.11929) that gives the states of all its patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import join_heads, split_heads
from vlrt_export.modules.dense import ACTIVATIONS, Dense, activate


@dataclass(frozen=True)
class VitSizes:
    """Side of the square image and of a patch in pixels, the transformer's sizes, and its leading tokens.

    Args:
        leading: learned tokens before the patches: the class token, for DeiT also that of the distillation.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    feed_forward: int
    activation: str = "gelu"
    epsilon: float = 1e-6
    leading: int = 1

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads or self.patch_size < 1 or self.image_size < self.patch_size:
            raise ValueError(f"a width of {self.width} over {self.heads} heads on {self.patch_size}-pixel patches")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation `{self.activation}` is not one of {', '.join(ACTIVATIONS)}")

    @property
    def length(self) -> int:
        """States per image."""
        return (self.image_size // self.patch_size) ** 2 + self.leading


class _Layer(nn.Module):
    def __init__(self, sizes: VitSizes) -> None:
        super().__init__()
        self.heads, self.activation = sizes.heads, sizes.activation
        self.norm1 = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.qkv = Dense(sizes.width, 3 * sizes.width)
        self.projection = Dense(sizes.width, sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.fc1 = Dense(sizes.width, sizes.feed_forward)
        self.fc2 = Dense(sizes.feed_forward, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        shares = ((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)).softmax(-1)
        x = x + self.projection(join_heads(shares @ value))
        return cast(Tensor, x + self.fc2(activate(self.fc1(self.norm2(x)), self.activation)))


class Vit(nn.Module):
    """Pixels [N, 3, H, W] to states [N, S, C], leading tokens first, normalised."""

    def __init__(self, sizes: VitSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.patches = nn.Conv2d(3, sizes.width, sizes.patch_size, sizes.patch_size)
        self.leading = nn.Parameter(torch.randn(1, sizes.leading, sizes.width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, sizes.length, sizes.width) * 0.02)
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.leading.expand(patches.shape[0], -1, -1), patches], 1) + self.position
        for layer in self.layers:
            x = layer(x)
        return cast(Tensor, self.norm(x))
