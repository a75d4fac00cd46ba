"""The networks of a VQ-VAE for pictures (van den Oord et al., arXiv 1711.00937, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VqVaeSizes:
    """Channels of a VQ-VAE.

    Args:
        hidden: of the residual stacks; the outer layers have half of them.
        residual: inside a residual block.
        blocks: residual blocks of each stack.
        width: of a code's vector.
        codebook: codes.
    """

    hidden: int = 128
    residual: int = 32
    blocks: int = 2
    width: int = 64
    codebook: int = 512


class _ResidualBlock(nn.Module):
    """ReLU, 3x3, ReLU, 1x1, none with a bias; the first ReLU is on the skipping path too, as in the original."""

    def __init__(self, sizes: VqVaeSizes) -> None:
        super().__init__()
        self.conv_3x3 = nn.Conv2d(sizes.hidden, sizes.residual, 3, padding=1, bias=False)
        self.conv_1x1 = nn.Conv2d(sizes.residual, sizes.hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return cast(Tensor, x + self.conv_1x1(F.relu(self.conv_3x3(x))))


class VqVaeEncoder(nn.Module):
    """Pixels [N, 3, H, W] of −0.5 to 0.5 to vectors [N, D, H / 4, W / 4]."""

    def __init__(self, sizes: VqVaeSizes) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, sizes.hidden // 2, 4, stride=2, padding=1)
        self.conv_2 = nn.Conv2d(sizes.hidden // 2, sizes.hidden, 4, stride=2, padding=1)
        self.conv_3 = nn.Conv2d(sizes.hidden, sizes.hidden, 3, padding=1)
        self.residual = nn.Sequential(*(_ResidualBlock(sizes) for _ in range(sizes.blocks)))
        self.pre_quant = nn.Conv2d(sizes.hidden, sizes.width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_3(F.relu(self.conv_2(F.relu(self.conv_1(x)))))
        return cast(Tensor, self.pre_quant(F.relu(self.residual(x))))


class VqVaeDecoder(nn.Module):
    """Vectors [N, D, h, w] to pixels [N, 3, 4h, 4w] of −0.5 to 0.5."""

    def __init__(self, sizes: VqVaeSizes) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(sizes.width, sizes.hidden, 3, padding=1)
        self.residual = nn.Sequential(*(_ResidualBlock(sizes) for _ in range(sizes.blocks)))
        self.conv_trans_1 = nn.ConvTranspose2d(sizes.hidden, sizes.hidden // 2, 4, stride=2, padding=1)
        self.conv_trans_2 = nn.ConvTranspose2d(sizes.hidden // 2, 3, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.residual(self.conv_1(x)))
        return cast(Tensor, self.conv_trans_2(F.relu(self.conv_trans_1(x))))
