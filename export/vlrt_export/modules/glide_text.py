"""GLIDE's text side: a transformer over the prompt, and what the denoiser's attention layers read of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TextAttention(nn.Module):
    """Self-attention over every place, padding included; queries, keys and values of a head lie side by side."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, L, W] to [N, L, W]."""
        rows, length, width = x.shape
        size = width // self.heads
        joined = self.c_qkv(x).reshape(rows, length, self.heads, 3 * size).transpose(1, 2)
        query, key, value = joined.chunk(3, dim=-1)
        weights = ((query * (1 / math.sqrt(size))) @ key.transpose(2, 3)).softmax(-1)
        return cast(Tensor, self.c_proj((weights @ value).transpose(1, 2).reshape(rows, length, width)))


class TextFeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.c_proj(F.gelu(self.c_fc(x))))


class TextBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = TextAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = TextFeedForward(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return cast(Tensor, x + self.mlp(self.ln_2(x)))


class GlideText(nn.Module):
    """A prompt to everything of it that is constant over the denoiser's steps.

    Args:
        vocabulary, context, width, layers, heads: of the transformer.
        embedding: width of the timestep's embedding, to which the prompt's last place is added.
        readers: channels of each attention layer of the denoiser, in order.

    Source: Nichol et al. (arXiv 2112.10741), section 2.3; reproduces the text half of ``Text2ImUNet`` of
    openai/glide-text2im, with the projections `encoder_kv` of its attention layers.
    """

    def __init__(
        self, vocabulary: int, context: int, width: int, layers: int, heads: int, embedding: int, readers: Sequence[int]
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.padding_embedding = nn.Parameter(torch.empty(context, width))
        self.resblocks = nn.ModuleList(TextBlock(width, heads) for _ in range(layers))
        self.final_ln = nn.LayerNorm(width)
        self.transformer_proj = nn.Linear(width, embedding)
        self.encoder_kv = nn.ModuleList(nn.Conv1d(width, 2 * channels, 1) for channels in readers)

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """What the denoiser reads.

        Args:
            input_ids: [N, L] int64, padded to the context.
            mask: [N, L] int64, 1 for a prompt's ids and 0 for padding.

        Returns:
            projection [N, E], then keys and values [N, 2C, L] of each of its attention layers.
        """
        x = self.token_embedding(input_ids) + self.positional_embedding
        x = torch.where((mask > 0)[..., None], x, self.padding_embedding)
        for block in self.resblocks:
            x = block(x)
        x = self.final_ln(x)
        columns = x.transpose(1, 2)
        return self.transformer_proj(x[:, -1]), *(layer(columns) for layer in self.encoder_kv)
