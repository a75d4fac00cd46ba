"""ClipCap's mapping networks: one vector of an image to the embeddings that stand before its caption.

Source: Mokady et al. (arXiv 2111.09734), sections 3.2 and 3.3; reproduces rmokady/CLIP_prefix_caption ``train.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import join_heads, split_heads
from vlrt_export.modules.dense import Dense

HEADS = 8
"""Of the transformer mapper, whatever its width."""


@dataclass(frozen=True)
class MapperSizes:
    """What decides a mapper's shape.

    Args:
        features: length of the image's vector.
        prefix: embeddings it becomes.
        width: of an embedding.
        clip_length: positions that the vector is spread over first; 0 for the MLP, which has none.
        layers: of the transformer; 0 for the MLP.
    """

    features: int
    prefix: int
    width: int
    clip_length: int = 0
    layers: int = 0

    def __post_init__(self) -> None:
        if min(self.features, self.prefix, self.width) < 1 or (self.layers > 0) != (self.clip_length > 0):
            raise ValueError("a mapper needs features, a prefix and a width, and both numbers of a transformer or none")
        if self.layers and self.width % HEADS:
            raise ValueError(f"a width of {self.width} does not split over {HEADS} heads")
        if not self.layers and self.prefix * self.width % 2:
            raise ValueError(f"{self.prefix} embeddings of {self.width} have no half for the hidden layer")


class MlpMapper(nn.Module):
    """Two layers with tanh between them: features [N, F] to a prefix [N, P, C]."""

    def __init__(self, sizes: MapperSizes) -> None:
        super().__init__()
        self.sizes = sizes
        total = sizes.prefix * sizes.width
        self.first = Dense(sizes.features, total // 2)
        self.second = Dense(total // 2, total)

    def forward(self, features: Tensor) -> Tensor:
        mapped: Tensor = self.second(torch.tanh(self.first(features)))
        return mapped.reshape(-1, self.sizes.prefix, self.sizes.width)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = Dense(width, width, bias=False)
        self.keys_values = Dense(width, 2 * width, bias=False)
        self.project = Dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.keys_values(x).chunk(2, -1)
        q, k, v = (split_heads(part, HEADS) for part in (self.queries(x), keys, values))
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        mixed: Tensor = self.project(join_heads(weights @ v))
        return mixed


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = Dense(width, 2 * width)
        self.fc2 = Dense(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        fed: Tensor = self.fc2(torch.relu(self.fc1(self.norm2(x))))
        return x + fed


class TransformerMapper(nn.Module):
    """The vector spread over some positions, learned constants behind them, and what these become in a transformer."""

    def __init__(self, sizes: MapperSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.linear = Dense(sizes.features, sizes.clip_length * sizes.width)
        self.constants = nn.Parameter(torch.randn(sizes.prefix, sizes.width))
        self.layers = nn.ModuleList(_Layer(sizes.width) for _ in range(sizes.layers))

    def forward(self, features: Tensor) -> Tensor:
        """Map features [N, F] to a prefix [N, P, C]."""
        spread = self.linear(features).reshape(-1, self.sizes.clip_length, self.sizes.width)
        constants = self.constants.expand(spread.shape[0], -1, -1)
        x = torch.cat([spread, constants], 1)
        for layer in self.layers:
            x = layer(x)
        return x[:, self.sizes.clip_length :]


class ImageFeatures(nn.Module):
    """CLIP's image tower [N, 3, H, W] to the vector [N, F] that the mapper was trained on.

    Args:
        visual: the tower with its projection.
        normalise: whether vectors are brought to length one first.
    """

    def __init__(self, visual: nn.Module, normalise: bool) -> None:
        super().__init__()
        self.visual = visual
        self.normalise = normalise

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.visual(pixels)
        return features / features.norm(dim=-1, keepdim=True) if self.normalise else features
