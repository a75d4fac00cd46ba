"""The networks of DALLE-pytorch's discrete VAE: halving convolutions, residual blocks, and their mirror image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DiscreteVaeSizes:
    """Shape of a discrete VAE.

    Args:
        hidden: channels of every layer.
        layers: that halve a side.
        blocks: residual ones behind them.
        width: of a code's vector.
        codebook: codes.
    """

    hidden: int
    layers: int
    blocks: int
    width: int
    codebook: int

    def __post_init__(self) -> None:
        if min(self.hidden, self.layers, self.width, self.codebook) < 1 or not self.layers <= 8:
            raise ValueError(f"{self.layers} layers of {self.hidden} channels, {self.codebook} codes of {self.width}")

    @property
    def factor(self) -> int:
        """Pixels along a side of what one code stands for."""
        return int(2**self.layers)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))) + x)


class DiscreteVaeEncoder(nn.Module):
    """Pixels [N, 3, H, W] to logits [N, K, H / factor, W / factor] of the codes."""

    def __init__(self, sizes: DiscreteVaeSizes) -> None:
        super().__init__()
        inputs = [3, *[sizes.hidden] * (sizes.layers - 1)]
        self.shrink = nn.ModuleList(nn.Conv2d(n, sizes.hidden, 4, stride=2, padding=1) for n in inputs)
        self.blocks = nn.Sequential(*(_ResidualBlock(sizes.hidden) for _ in range(sizes.blocks)))
        self.last = nn.Conv2d(sizes.hidden, sizes.codebook, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.shrink:
            x = F.relu(layer(x))
        return cast(Tensor, self.last(self.blocks(x)))


class DiscreteVaeDecoder(nn.Module):
    """Vectors [N, D, h, w] to pixels [N, 3, factor · h, factor · w]; it begins with a layer only before blocks."""

    def __init__(self, sizes: DiscreteVaeSizes) -> None:
        super().__init__()
        first = sizes.hidden if sizes.blocks else sizes.width
        self.first = nn.Conv2d(sizes.width, sizes.hidden, 1) if sizes.blocks else nn.Identity()
        self.blocks = nn.Sequential(*(_ResidualBlock(sizes.hidden) for _ in range(sizes.blocks)))
        inputs = [first, *[sizes.hidden] * (sizes.layers - 1)]
        self.grow = nn.ModuleList(nn.ConvTranspose2d(n, sizes.hidden, 4, stride=2, padding=1) for n in inputs)
        self.last = nn.Conv2d(sizes.hidden, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.first(x))
        for layer in self.grow:
            x = F.relu(layer(x))
        return cast(Tensor, self.last(x))
