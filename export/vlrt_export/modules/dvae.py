"""The networks of DALL-E's discrete VAE (Ramesh et al., arXiv 2102.12092, appendix A)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS = 4
_CHANNELS = 3


@dataclass(frozen=True)
class DvaeSizes:
    """Channels of a discrete VAE.

    Args:
        encoder, decoder: of the widest picture; they double where a side halves.
        first: of the decoder's first layer, a code's vector.
        blocks: residual blocks in each of the four groups.
        codebook: codes.
    """

    encoder: int = 256
    decoder: int = 256
    first: int = 128
    blocks: int = 2
    codebook: int = 8192

    def __post_init__(self) -> None:
        if min(self.encoder, self.decoder, self.first, self.blocks, self.codebook) < 1:
            raise ValueError(f"{self} has sizes below one")
        if self.encoder % 4 or self.decoder % 4:
            raise ValueError(f"{self.encoder} and {self.decoder} channels are no multiples of 4")


class DvaeBlock(nn.Module):
    """A residual block whose inner layers have a quarter of the channels, its path scaled by a constant gain.

    Args:
        inputs, outputs: channels.
        kernels: sides of the four kernels.
        layers: residual blocks of the whole network; the gain is 1 over their square.
    """

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, int, int, int], layers: int) -> None:
        super().__init__()
        inner = outputs // 4
        channels = (inputs, inner, inner, inner, outputs)
        self.gain = 1 / layers**2
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, side, padding=side // 2) for a, b, side in zip(channels, channels[1:], kernels)
        )

    def forward(self, x: Tensor) -> Tensor:
        path = x
        for conv in self.convs:
            path = conv(F.relu(path))
        return cast(Tensor, self.skip(x) + self.gain * path)


class DvaeEncoder(nn.Module):
    """Pixels [N, 3, H, W] of 0.1 to 0.9 to logits [N, K, H / 8, W / 8] of the codes."""

    def __init__(self, sizes: DvaeSizes) -> None:
        super().__init__()
        width, layers = sizes.encoder, _GROUPS * sizes.blocks
        self.first = nn.Conv2d(_CHANNELS, width, 7, padding=3)
        self.groups = nn.ModuleList()
        before = width
        for group in range(_GROUPS):
            after = width * 2**group
            inputs = [before, *[after] * (sizes.blocks - 1)]
            self.groups.append(nn.Sequential(*(DvaeBlock(n, after, (3, 3, 3, 1), layers) for n in inputs)))
            before = after
        self.last = nn.Conv2d(before, sizes.codebook, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, group in enumerate(self.groups):
            x = group(x if number == 0 else F.max_pool2d(x, 2))
        return cast(Tensor, self.last(F.relu(x)))


class DvaeDecoder(nn.Module):
    """Vectors [N, D, h, w] of codes to pixels [N, 3, 8h, 8w] of 0 to 1.

    The network gives a mean and a scale for each channel; a picture is the means' sigmoid. The reference's first layer,
    a 1x1 convolution of one-hot codes, is the codes' vectors with `bias` added.
    """

    def __init__(self, sizes: DvaeSizes) -> None:
        super().__init__()
        width, layers = sizes.decoder, _GROUPS * sizes.blocks
        self.bias = nn.Parameter(torch.zeros(sizes.first))
        self.groups = nn.ModuleList()
        before = sizes.first
        for group in reversed(range(_GROUPS)):
            after = width * 2**group
            inputs = [before, *[after] * (sizes.blocks - 1)]
            self.groups.append(nn.Sequential(*(DvaeBlock(n, after, (1, 3, 3, 3), layers) for n in inputs)))
            before = after
        self.last = nn.Conv2d(before, 2 * _CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.bias[:, None, None]
        for number, group in enumerate(self.groups):
            x = group(x if number == 0 else F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return cast(Tensor, self.last(F.relu(x))[:, :_CHANNELS].sigmoid())
