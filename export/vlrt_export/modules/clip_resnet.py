"""CLIP's residual network: a three-layer stem, average pools instead of strides, attention instead of a last pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EXPANSION = 4
_STRIDE = 32
"""From pixels to the last feature map."""


@dataclass(frozen=True)
class ResNetSizes:
    """Side of the square image in pixels, width of the first stage, blocks of the four stages, heads of the pool."""

    image_size: int
    width: int
    blocks: tuple[int, int, int, int]
    heads: int

    @property
    def features(self) -> int:
        """Channels of the last feature map."""
        return self.width * 8 * _EXPANSION

    @property
    def positions(self) -> int:
        """Places of the last feature map, and their mean."""
        return (self.image_size // _STRIDE) ** 2 + 1


class Bottleneck(nn.Module):
    """Three convolutions around a shortcut; a stride is an average pool before the last (and in the shortcut)."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        wide = planes * _EXPANSION
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels != wide:
            self.downsample = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self._pooled(out)))
        shortcut = x if self.downsample is None else self.downsample(self._pooled(x))
        return F.relu(out + shortcut)

    def _pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """The mean over all places asks, all places and the mean answer: [N, C, h, w] to [N, D]."""

    def __init__(self, sizes: ResNetSizes, dimension: int) -> None:
        super().__init__()
        width = sizes.features
        self.heads = sizes.heads
        self.positional_embedding = nn.Parameter(torch.randn(sizes.positions, width) * width**-0.5)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, dimension)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)
        places = torch.cat([places.mean(1, keepdim=True), places], 1) + self.positional_embedding
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.q_proj(places[:, :1]), self.k_proj(places), self.v_proj(places))
        )
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)).softmax(-1)
        return cast(Tensor, self.c_proj((weights @ v).flatten(1)))


class ModifiedResNet(nn.Module):
    """Pixels [N, 3, H, W] to unnormalised embeddings [N, D].

    Args:
        sizes: image, widths, blocks and heads.
        dimension: length of an embedding.

    Source: Radford et al. (arXiv 2103.00020), section 2.4; reproduces openai/CLIP ``model.py`` with its names.
    """

    def __init__(self, sizes: ResNetSizes, dimension: int) -> None:
        super().__init__()
        width, half = sizes.width, sizes.width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels = width
        for stage, blocks in enumerate(sizes.blocks):
            planes = width * 2**stage
            setattr(self, f"layer{stage + 1}", _stage(channels, planes, blocks, 1 if stage == 0 else 2))
            channels = planes * _EXPANSION
        self.attnpool = AttentionPool(sizes, dimension)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(pixels)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, stage)(x)
        return cast(Tensor, self.attnpool(x))


def _stage(channels: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels, planes, stride)
    return nn.Sequential(first, *(Bottleneck(planes * _EXPANSION, planes, 1) for _ in range(blocks - 1)))
