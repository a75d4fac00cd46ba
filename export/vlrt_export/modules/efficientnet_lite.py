"""EfficientNet-Lite image encoders: the last feature map as a list of regions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

_BATCH_NORM_EPS = 1e-3


@dataclass(frozen=True)
class LiteSize:
    """Width and depth multipliers and the square input size, in pixels, of one EfficientNet-Lite."""

    width: float
    depth: float
    image_size: int


SIZES = {
    "efficientnet-lite0": LiteSize(1.0, 1.0, 224),
    "efficientnet-lite1": LiteSize(1.0, 1.1, 240),
    "efficientnet-lite2": LiteSize(1.1, 1.2, 260),
    "efficientnet-lite3": LiteSize(1.2, 1.4, 280),
    "efficientnet-lite4": LiteSize(1.4, 1.8, 300),
}


@dataclass(frozen=True)
class Stage:
    """A run of inverted-residual blocks; only the first block of a stage strides."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    blocks: int


_BASE_STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)


def _round_channels(channels: float) -> int:
    """The nearest multiple of eight, never more than ten per cent below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def scaled_stages(size: LiteSize) -> list[Stage]:
    """The seven stages of one size; unlike EfficientNet, the first and last stage keep their single block.

    Source: Tan and Le, EfficientNet (arXiv 1905.11946), section 3.3, with the Lite variant's fixed stem and head.
    """
    last = len(_BASE_STAGES) - 1
    return [
        Stage(
            stage.kernel,
            stage.stride,
            stage.expansion,
            _round_channels(stage.channels * size.width),
            stage.blocks if i in (0, last) else math.ceil(stage.blocks * size.depth),
        )
        for i, stage in enumerate(_BASE_STAGES)
    ]


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": the odd pixel goes to the bottom and right."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [N, C, H, W] to [N, C', ceil(H / stride), ceil(W / stride)]."""
        top, bottom = self._margins(x.shape[2], 0)
        left, right = self._margins(x.shape[3], 1)
        if top == bottom and left == right:
            return F.conv2d(x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _margins(self, size: int, axis: int) -> tuple[int, int]:
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1; the input is added where shape and stride allow.

    The attribute names are those of the published checkpoints.
    """

    def __init__(self, in_channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        wide = in_channels * stage.expansion
        self._skip = stride == 1 and in_channels == stage.channels
        self._expand = stage.expansion != 1
        if self._expand:
            self._expand_conv = SameConv2d(in_channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, _BATCH_NORM_EPS)
        self._depthwise_conv = SameConv2d(wide, wide, stage.kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, _BATCH_NORM_EPS)
        self._project_conv = SameConv2d(wide, stage.channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(stage.channels, _BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H / stride, W / stride]."""
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self._expand else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        y: Tensor = self._bn2(self._project_conv(wide))
        return x + y if self._skip else y


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite without its classifier.

    Args:
        size: multipliers of the variant, one of `SIZES`.

    Source: the Lite variants of the TensorFlow TPU repository; names as in the package `efficientnet_lite_pytorch`.
    """

    channels = 1280

    def __init__(self, size: LiteSize) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, _BATCH_NORM_EPS)
        blocks: list[nn.Module] = []
        channels = 32
        for stage in scaled_stages(size):
            for i in range(stage.blocks):
                blocks.append(InvertedResidual(channels, stage, stage.stride if i == 0 else 1))
                channels = stage.channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, self.channels, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(self.channels, _BATCH_NORM_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode photographs.

        Args:
            pixels: normalised RGB [N, 3, H, W], fp32.

        Returns:
            regions [N, h*w, 1280], row-major over the last feature map.
        """
        x = F.relu6(self._bn0(self._conv_stem(pixels)))
        for block in self._blocks:
            x = block(x)
        features = F.relu6(self._bn1(self._conv_head(x)))
        return features.flatten(2).transpose(1, 2)
