"""The small dual encoder: attention-pooled image regions and a causal text transformer in one space."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DualEncoderSizes:
    """Region width, model width, heads, text layers, feed-forward width, longest text, shared space, vocabulary."""

    regions: int
    width: int
    heads: int
    text_layers: int
    feed_forward: int
    context: int
    dimensions: int
    vocabulary: int


class MultiHeadAttention(nn.Module):
    """Multi-head attention in torch's parameter layout, written with plain products so that it traces plainly."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Query [N, Q, W] over memory [N, S, W]; `mask` [Q, S] is added to the scores."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        sources = (query, memory, memory)
        q, k, v = (self._split(F.linear(x, w, b)) for x, w, b in zip(sources, weights, biases, strict=True))
        scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5)
        if mask is not None:
            scores = scores + mask
        mixed: Tensor = self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class ImagePool(nn.Module):
    """Regions to one embedding: the mean, shifted by a learned query, attends over all."""

    def __init__(self, sizes: DualEncoderSizes) -> None:
        super().__init__()
        self.annotation = nn.Linear(sizes.regions, sizes.width)
        self.query = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pool = MultiHeadAttention(sizes.width, sizes.heads)
        self.norm = nn.LayerNorm(sizes.width)
        self.projection = nn.Linear(sizes.width, sizes.dimensions, bias=False)

    def forward(self, regions: Tensor) -> Tensor:
        """Image embeddings [N, D], L2-normalised, of regions [N, S, C]."""
        annotations = self.annotation(regions).relu()
        query = annotations.mean(1, keepdim=True) + self.query
        pooled = (query + self.pool(query, annotations)).squeeze(1)
        return _normalise(self.projection(self.norm(pooled)))


class TextLayer(nn.Module):
    """A pre-norm transformer layer with torch's names."""

    def __init__(self, sizes: DualEncoderSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width)
        self.self_attn = MultiHeadAttention(sizes.width, sizes.heads)
        self.norm2 = nn.LayerNorm(sizes.width)
        self.linear1 = nn.Linear(sizes.width, sizes.feed_forward)
        self.linear2 = nn.Linear(sizes.feed_forward, sizes.width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map [N, L, W] to [N, L, W] under `mask` [L, L]."""
        y = self.norm1(x)
        x = x + self.self_attn(y, y, mask)
        feed: Tensor = self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return x + feed


class TextEncoder(nn.Module):
    """A causal transformer whose state at the end word is the sentence."""

    def __init__(self, sizes: DualEncoderSizes, end_id: int) -> None:
        super().__init__()
        self.end_id = end_id
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.position = nn.Parameter(torch.randn(sizes.context, sizes.width) * 0.02)
        self.layers = nn.ModuleList(TextLayer(sizes) for _ in range(sizes.text_layers))
        self.norm = nn.LayerNorm(sizes.width)
        self.projection = nn.Linear(sizes.width, sizes.dimensions, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Text embeddings [N, D], L2-normalised, of ids [N, L] that hold `<start> words <end>` and padding after."""
        length = input_ids.shape[1]
        x = self.embedding(input_ids) + self.position[:length]
        mask = torch.full((length, length), -torch.inf).triu(1)
        for layer in self.layers:
            x = layer(x, mask)
        end = (input_ids == self.end_id).to(torch.int64).argmax(1)
        state = x.gather(1, end.view(-1, 1, 1).expand(-1, 1, x.shape[2])).squeeze(1)
        return _normalise(self.projection(self.norm(state)))


class DualEncoder(nn.Module):
    """Both towers and the temperature; parameters are named as in our own checkpoints.

    Args:
        sizes: widths of the layers.
        end_id: id of the word at whose place the text is read off.

    Source: the two-tower idea is Radford et al. (arXiv 2103.00020); the layers are our own.
    """

    def __init__(self, sizes: DualEncoderSizes, end_id: int) -> None:
        super().__init__()
        self.image = ImagePool(sizes)
        self.text = TextEncoder(sizes, end_id)
        self.log_temperature = nn.Parameter(torch.zeros(1))


def _normalise(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)
