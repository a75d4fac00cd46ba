"""GLIDE's denoiser: the U-Net of Dhariwal and Nichol with the prompt's keys and values in its self-attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Resampling = Literal["", "up", "down"]
_GROUPS = 32
_PICTURE = 3


@dataclass(frozen=True)
class GlideSizes:
    """What decides the shape of one of GLIDE's two models; the defaults are those of the published base model.

    Args:
        image_size: height and width of its samples in pixels.
        channels: of the first level; `multipliers` says how many times as many the others have.
        blocks: residual blocks per level.
        attention: heights at which attention layers follow them.
        head_channels: width of a head.
        context, vocabulary, text_width, text_layers, text_heads: of the transformer that reads the prompt.
        inpaint: whether it takes a picture to paint into and a mask.
        low_resolution: height and width of the picture it enlarges; 0: it starts from noise alone.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    image_size: int = 64
    channels: int = 192
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    context: int = 128
    vocabulary: int = 50257
    text_width: int = 512
    text_layers: int = 16
    text_heads: int = 8
    inpaint: bool = False
    low_resolution: int = 0

    def __post_init__(self) -> None:
        if self.channels % _GROUPS or any(self.channels * m % self.head_channels for m in self.multipliers):
            raise ValueError(f"{self.channels} channels split into neither {_GROUPS} groups nor heads")
        if self.image_size % (1 << len(self.multipliers) - 1) or self.text_width % self.text_heads:
            raise ValueError(f"{self.image_size} pixels cannot be halved {len(self.multipliers) - 1} times")

    @property
    def inputs(self) -> int:
        """Channels of the first convolution: sample, picture to paint into and its mask, smaller picture."""
        return _PICTURE + (_PICTURE + 1 if self.inpaint else 0) + (_PICTURE if self.low_resolution else 0)

    @property
    def embedding(self) -> int:
        """Width of the timestep's embedding."""
        return 4 * self.channels

    def attends(self, level: int) -> bool:
        """Whether attention follows the residual blocks of a level; level 0 has the sample's own size."""
        return self.image_size >> level in self.attention


class GroupNorm(nn.GroupNorm):
    """Over 32 groups, with SiLU behind it where `active`; as a layer norm of each group, the faster kernel."""

    def __init__(self, channels: int, active: bool = False) -> None:
        super().__init__(_GROUPS, channels)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], self.num_groups, -1)
        even = F.layer_norm(rows, rows.shape[-1:], eps=self.eps).reshape(x.shape)
        shape = (-1, *(1 for _ in x.shape[2:]))
        normed = even * self.weight.view(shape) + self.bias.view(shape)
        return F.silu(normed) if self.active else normed


class ResidualBlock(nn.Module):
    """Two convolutions with the timestep's scale and shift between them, halved or doubled in size on the way."""

    def __init__(self, inputs: int, outputs: int, embedding: int, resampling: Resampling = "") -> None:
        super().__init__()
        self.resampling = resampling
        self.in_layers = nn.Sequential(
            GroupNorm(inputs, active=True), nn.Identity(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs))
        self.out_layers = nn.Sequential(
            GroupNorm(outputs), nn.SiLU(), nn.Identity(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map [R, C, H, W] under an embedding [R, E] to [R, D, H', W']."""
        norm, _, convolution = self.in_layers
        h = convolution(_resample(norm(x), self.resampling))
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return cast(Tensor, self.skip_connection(_resample(x, self.resampling)) + self.out_layers[1:](h))


class Attention(nn.Module):
    """Places attend to each other and to the prompt, whose keys and values are given.

    Every tensor keeps its places on the last axis, as the convolutions around it do: nothing is transposed in memory.
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.size = head_channels
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Map [R, C, H, W], with the prompt's keys and values [R, 2C, L], to [R, C, H, W]."""
        rows, channels, height, width = x.shape
        heads = channels // self.size
        joined = self.qkv(self.norm(x).reshape(rows, channels, height * width))
        query, key, value = joined.reshape(rows, heads, 3 * self.size, height * width).chunk(3, dim=2)
        text_key, text_value = memory.reshape(rows, heads, 2 * self.size, memory.shape[2]).chunk(2, dim=2)
        key, value = torch.cat([text_key, key], dim=3), torch.cat([text_value, value], dim=3)
        weights = ((query * (1 / math.sqrt(self.size))).transpose(2, 3) @ key).softmax(-1)
        mixed = (value @ weights.transpose(2, 3)).reshape(rows, channels, height * width)
        return cast(Tensor, x + self.proj_out(mixed).reshape(x.shape))


class GlideUnet(nn.Module):
    """One of GLIDE's denoisers without its text side; parameters are named as in openai/glide-text2im.

    Source: Dhariwal and Nichol (arXiv 2105.05233), section 3, and Nichol et al. (arXiv 2112.10741), section 2;
    reproduces ``Text2ImUNet`` and its three variants, with scale and shift and residual resampling as published.
    """

    def __init__(self, sizes: GlideSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width, channels = sizes.embedding, sizes.channels * sizes.multipliers[0]
        self.time_embed = nn.Sequential(nn.Linear(sizes.channels, width), nn.SiLU(), nn.Linear(width, width))
        first = nn.Conv2d(sizes.inputs, channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.ModuleList([first]), *_descending(sizes)])
        middle = sizes.channels * sizes.multipliers[-1]
        self.middle_block = nn.ModuleList(
            [
                ResidualBlock(middle, middle, width),
                Attention(middle, sizes.head_channels),
                ResidualBlock(middle, middle, width),
            ]
        )
        self.output_blocks = nn.ModuleList(_ascending(sizes))
        self.out = nn.Sequential(
            GroupNorm(channels, active=True), nn.Identity(), nn.Conv2d(channels, 2 * _PICTURE, 3, padding=1)
        )

    @property
    def attention_layers(self) -> list[tuple[str, Attention]]:
        """Name and layer in the order in which `forward` takes what they read."""
        return [(name, layer) for name, layer in self.named_modules() if isinstance(layer, Attention)]

    def forward(self, sample: Tensor, timestep: Tensor, projection: Tensor, *conditions: Tensor) -> Tensor:
        """Predict the noise and where the variance lies between its bounds.

        Args:
            sample: [R, 3, H, W].
            timestep: [R] int64.
            projection: [R, E], the prompt's.
            conditions: the pictures that its sizes ask for (masked picture [R, 3, H, W] and the mask [R, 1, H, W], 1
                where it is kept; enlarged picture [R, 3, H, W]), then the prompt's keys and values [R, 2C, L] of each
                attention layer.

        Returns:
            prediction [R, 6, H, W].
        """
        count = len(self.attention_layers)
        pictures, memories = conditions[: len(conditions) - count], iter(conditions[len(conditions) - count :])
        embedding = self.time_embed(sinusoids(timestep, self.sizes.channels)) + projection
        h, passed = torch.cat([sample, *pictures], dim=1), []
        for block in self.input_blocks:
            h = _run(cast(nn.ModuleList, block), h, embedding, memories)
            passed.append(h)
        h = _run(self.middle_block, h, embedding, memories)
        for block in self.output_blocks:
            h = _run(cast(nn.ModuleList, block), torch.cat([h, passed.pop()], dim=1), embedding, memories)
        return cast(Tensor, self.out(h))


def sinusoids(timestep: Tensor, width: int) -> Tensor:
    """Embedding [R, width] of timesteps [R]: cosines, then sines, of frequencies from 1 down to almost 1/10,000."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, dtype=torch.float32) / (width // 2))
    angles = timestep[:, None].to(torch.float32) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _run(layers: nn.ModuleList, x: Tensor, embedding: Tensor, memories: Iterator[Tensor]) -> Tensor:
    for layer in layers:
        if isinstance(layer, ResidualBlock):
            x = layer(x, embedding)
        else:
            x = layer(x, next(memories)) if isinstance(layer, Attention) else layer(x)
    return x


def _resample(x: Tensor, kind: Resampling) -> Tensor:
    if kind == "up":
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.avg_pool2d(x, 2) if kind == "down" else x


def _layers(inputs: int, outputs: int, level: int, sizes: GlideSizes) -> list[nn.Module]:
    """A residual block, and an attention layer where the level has them."""
    block = ResidualBlock(inputs, outputs, sizes.embedding)
    return [block, Attention(outputs, sizes.head_channels)] if sizes.attends(level) else [block]


def _descending(sizes: GlideSizes) -> Iterator[nn.ModuleList]:
    channels = sizes.channels * sizes.multipliers[0]
    for level, multiplier in enumerate(sizes.multipliers):
        for _ in range(sizes.blocks):
            yield nn.ModuleList(_layers(channels, sizes.channels * multiplier, level, sizes))
            channels = sizes.channels * multiplier
        if level < len(sizes.multipliers) - 1:
            yield nn.ModuleList([ResidualBlock(channels, channels, sizes.embedding, "down")])


def _ascending(sizes: GlideSizes) -> Iterator[nn.ModuleList]:
    channels, passed = sizes.channels * sizes.multipliers[-1], _passed(sizes)
    for level, multiplier in reversed(list(enumerate(sizes.multipliers))):
        for place in range(sizes.blocks + 1):
            layers = _layers(channels + passed.pop(), sizes.channels * multiplier, level, sizes)
            channels = sizes.channels * multiplier
            if level and place == sizes.blocks:
                layers.append(ResidualBlock(channels, channels, sizes.embedding, "up"))
            yield nn.ModuleList(layers)


def _passed(sizes: GlideSizes) -> list[int]:
    """Channels of what the descending blocks hand to the ascending ones."""
    widths = [sizes.channels * sizes.multipliers[0]]
    for level, multiplier in enumerate(sizes.multipliers):
        halved = level < len(sizes.multipliers) - 1
        widths += [sizes.channels * multiplier] * (sizes.blocks + halved)
    return widths
