"""The networks of a VQGAN (Esser et al., arXiv 2012.09841, appendix C): residual blocks, some with attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class VqGanSizes:
    """Shape of a VQGAN's encoder or decoder.

    Args:
        channels: of each level, the widest picture's first.
        blocks: residual blocks of each level.
        attended: levels whose blocks are each followed by attention.
        latent: channels between network and codebook.
        groups, epsilon: of the group norms.
        middle_attention: whether the innermost blocks have attention between them.
    """

    channels: tuple[int, ...]
    blocks: int
    attended: tuple[int, ...]
    latent: int
    groups: int = 32
    epsilon: float = 1e-6
    middle_attention: bool = True

    def __post_init__(self) -> None:
        uneven = [count for count in self.channels if count < 1 or count % self.groups]
        if not self.channels or uneven or self.blocks < 1:
            raise ValueError(f"channels {list(self.channels)} do not divide into {self.groups} groups")

    @property
    def most_codes(self) -> int:
        """Of one picture: attention between more places than 16,384 takes more than a gigabyte."""
        last = len(self.channels) - 1
        attended = min((*self.attended, last), default=last)
        return int(2**14 // 4 ** (last - attended)) if self.attended or self.middle_attention else 2**16

    @property
    def factor(self) -> int:
        """Pixels along a side of what one code stands for."""
        return int(2 ** (len(self.channels) - 1))


def _norm(channels: int, sizes: VqGanSizes) -> nn.GroupNorm:
    return nn.GroupNorm(sizes.groups, channels, eps=sizes.epsilon)


class _ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, sizes: VqGanSizes) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(inputs, sizes), _norm(outputs, sizes)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        path = self.conv1(F.silu(self.norm1(x)))
        path = self.conv2(F.silu(self.norm2(path)))
        return cast(Tensor, self.shortcut(x) + path)


class _Attention(nn.Module):
    """Every place attends to every place, with one head."""

    def __init__(self, channels: int, sizes: VqGanSizes) -> None:
        super().__init__()
        self.norm = _norm(channels, sizes)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        shares = (query.transpose(1, 2) @ (key * key.shape[1] ** -0.5)).softmax(2)
        mixed = (value @ shares.transpose(1, 2)).reshape(x.shape)
        return cast(Tensor, x + self.output(mixed))


class _Level(nn.Module):
    """The blocks of one size of the picture; `resample` leads to the next, where there is one."""

    def __init__(self, inputs: int, number: int, sizes: VqGanSizes, blocks: int, stride: int) -> None:
        super().__init__()
        outputs = sizes.channels[number]
        every = [inputs, *[outputs] * (blocks - 1)]
        self.blocks = nn.ModuleList(_ResidualBlock(before, outputs, sizes) for before in every)
        attended = range(blocks if number in sizes.attended else 0)
        self.attentions = nn.ModuleList(_Attention(outputs, sizes) for _ in attended)
        padding = 0 if stride == 2 else 1
        self.resample = nn.Conv2d(outputs, outputs, 3, stride=stride, padding=padding) if stride else None

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.blocks):
            x = block(x)
            if self.attentions:
                x = self.attentions[number](x)
        return x


class _Middle(nn.Module):
    def __init__(self, sizes: VqGanSizes) -> None:
        super().__init__()
        channels = sizes.channels[-1]
        self.first = _ResidualBlock(channels, channels, sizes)
        self.attention = _Attention(channels, sizes) if sizes.middle_attention else nn.Identity()
        self.second = _ResidualBlock(channels, channels, sizes)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.second(self.attention(self.first(x))))


class VqGanEncoder(nn.Module):
    """Pixels [N, 3, H, W] to [N, D, H / factor, W / factor]: vectors, or logits of D codes."""

    def __init__(self, sizes: VqGanSizes, outputs: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (sizes.channels[0], *sizes.channels[:-1])
        last = len(inputs) - 1
        self.first = nn.Conv2d(3, inputs[0], 3, padding=1)
        self.levels = nn.ModuleList(
            _Level(count, number, sizes, sizes.blocks, 2 if number < last else 0) for number, count in enumerate(inputs)
        )
        self.middle = _Middle(sizes)
        self.norm = _norm(sizes.channels[-1], sizes)
        self.last = nn.Conv2d(sizes.channels[-1], sizes.latent, 3, padding=1)
        channels = (sizes.latent, *outputs)
        self.projections = nn.Sequential(*(nn.Conv2d(a, b, 1) for a, b in zip(channels, outputs)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for level in self.levels:
            x = level(x)
            if level.resample is not None:
                # Trained with a row and a column more at the far sides only.
                x = level.resample(F.pad(x, (0, 1, 0, 1)))  # type: ignore[operator]
        x = self.last(F.silu(self.norm(self.middle(x))))
        return cast(Tensor, self.projections(x))


class VqGanDecoder(nn.Module):
    """Vectors [N, D, h, w] to pixels [N, 3, factor · h, factor · w]."""

    def __init__(self, sizes: VqGanSizes, width: int) -> None:
        super().__init__()
        channels = sizes.channels
        self.projection = nn.Conv2d(width, sizes.latent, 1)
        self.first = nn.Conv2d(sizes.latent, channels[-1], 3, padding=1)
        self.middle = _Middle(sizes)
        inputs = (*channels[1:], channels[-1])
        self.levels = nn.ModuleList(
            _Level(count, number, sizes, sizes.blocks + 1, 1 if number else 0) for number, count in enumerate(inputs)
        )
        self.norm = _norm(channels[0], sizes)
        self.last = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.first(self.projection(x)))
        for number in reversed(range(len(self.levels))):
            level = self.levels[number]
            x = level(x)
            if level.resample is not None:
                x = level.resample(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[operator]
        return cast(Tensor, self.last(F.silu(self.norm(x))))
