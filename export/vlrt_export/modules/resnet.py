"""ResNet-101 image encoder at a fixed grid of 14x14 regions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESNET101_BLOCKS = (3, 4, 23, 3)
"""Bottlenecks in each of the four stages (He et al., arXiv 1512.03385, table 1)."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a shortcut; the stride sits on the 3x3 as in torchvision."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, 4*width, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y + shortcut)


def adaptive_average(size: int, bins: int) -> Tensor:
    """The matrix [bins, size] of adaptive average pooling along one axis.

    A matrix product serves every image size alike; ONNX has no adaptive pooling to other than one bin.
    """
    matrix = torch.zeros(bins, size)
    for i in range(bins):
        first, last = i * size // bins, -(-(i + 1) * size // bins)
        matrix[i, first:last] = 1.0 / (last - first)
    return matrix


class ResNet101(nn.Module):
    """ResNet-101 without pooling and classifier, averaged to a square grid.

    Args:
        image_size: height and width of the input in pixels.
        grid: regions along each side, 14 in the reference.
        blocks: bottlenecks per stage; fewer make a small network for tests.

    Source: the encoder of sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning; its state-dict names (`resnet.0` is the
    stem, `resnet.1` its batch norm, `resnet.4` to `resnet.7` the stages). torchvision's names are mapped on loading.
    """

    channels = 2048
    averaging: Tensor

    def __init__(
        self, image_size: int = 256, grid: int = 14, blocks: tuple[int, int, int, int] = RESNET101_BLOCKS
    ) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        stages: list[nn.Module] = []
        channels = 64
        for i, count in enumerate(blocks):
            width = 64 << i
            layers = []
            for j in range(count):
                layers.append(Bottleneck(channels, width, 2 if i and j == 0 else 1))
                channels = width * Bottleneck.expansion
            stages.append(nn.Sequential(*layers))
        self.resnet = nn.Sequential(*stem, *stages)
        axis = adaptive_average(-(-image_size // 32), grid)
        self.register_buffer("averaging", torch.kron(axis, axis), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode photographs.

        Args:
            pixels: normalised RGB [N, 3, H, W], fp32, of the size given at construction.

        Returns:
            regions [N, grid*grid, 2048], row-major.
        """
        features: Tensor = self.resnet(pixels)
        return self.averaging @ features.flatten(2).transpose(1, 2)


_TORCHVISION_STEM = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def from_torchvision(name: str) -> str | None:
    """The name here of torchvision's parameter `name`, or `None` for the classifier's."""
    head, _, tail = name.partition(".")
    return f"resnet.{_TORCHVISION_STEM[head]}.{tail}" if head in _TORCHVISION_STEM else None
