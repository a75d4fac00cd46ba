"""GoogLeNet (Inception v1) image encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_INCEPTIONS = {
    "inception3a": (192, 64, 96, 128, 16, 32, 32),
    "inception3b": (256, 128, 128, 192, 32, 96, 64),
    "inception4a": (480, 192, 96, 208, 16, 48, 64),
    "inception4b": (512, 160, 112, 224, 24, 64, 64),
    "inception4c": (512, 128, 128, 256, 24, 64, 64),
    "inception4d": (512, 112, 144, 288, 32, 64, 64),
    "inception4e": (528, 256, 160, 320, 32, 128, 128),
    "inception5a": (832, 256, 160, 320, 32, 128, 128),
    "inception5b": (832, 384, 192, 384, 48, 128, 128),
}
"""Input channels, 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, pooled (Szegedy et al., arXiv 1409.4842, table 1)."""

LAST_14 = "inception4e"
LAST_7 = "inception5b"
CHANNELS = {LAST_14: 832, LAST_7: 1024}


class BasicConv2d(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H', W']."""
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches side by side, concatenated on the channels."""

    def __init__(self, widths: tuple[int, int, int, int, int, int, int]) -> None:
        super().__init__()
        inputs, one, reduce_three, three, reduce_five, five, pooled = widths
        self.branch1 = BasicConv2d(inputs, one, 1)
        self.branch2 = nn.Sequential(
            BasicConv2d(inputs, reduce_three, 1), BasicConv2d(reduce_three, three, 3, padding=1)
        )
        # The "5x5" branch of torchvision's published weights is 3x3; the checkpoints only fit that.
        self.branch3 = nn.Sequential(BasicConv2d(inputs, reduce_five, 1), BasicConv2d(reduce_five, five, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), BasicConv2d(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H, W]."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class GoogLeNet(nn.Module):
    """GoogLeNet without classifiers, up to one of its last feature maps.

    Args:
        last: `LAST_14` (14x14x832 at 224 pixels, finer regions to attend to) or `LAST_7` (7x7x1024, whose mean over
            the regions is the pooled vector that the classifier reads).

    Source: torchvision's names and layers. Its published weights were trained with pixels scaled to [-1, 1]
    (mean 0.5, std 0.5), not with ImageNet's mean and deviation.
    """

    def __init__(self, last: str = LAST_7) -> None:
        super().__init__()
        self.channels = CHANNELS[last]
        self.conv1 = BasicConv2d(3, 64, 7, stride=2, padding=3)
        self.conv2 = BasicConv2d(64, 64, 1)
        self.conv3 = BasicConv2d(64, 192, 3, padding=1)
        self._names = [name for name in _INCEPTIONS if name <= last]
        for name in self._names:
            self.add_module(name, Inception(_INCEPTIONS[name]))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode photographs.

        Args:
            pixels: RGB in [-1, 1], [N, 3, H, W], fp32.

        Returns:
            regions [N, h*w, C], row-major.
        """
        x = F.max_pool2d(self.conv1(pixels), 3, 2, ceil_mode=True)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, 2, ceil_mode=True)
        for name in self._names:
            if name == "inception4a":
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            if name == "inception5a":
                x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            x = self.get_submodule(name)(x)
        return x.flatten(2).transpose(1, 2)
