"""CLIP's text transformer as diffusion models read it: a state for every token, and where wanted the embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlrt_export.modules.clip_text import TextSizes
from vlrt_export.modules.clip_transformer import Transformer


class ClipPrompt(nn.Module):
    """Ids [N, L] to the last layer's normalised states [N, L, W] and, with a projection, embeddings [N, D].

    Args:
        sizes: vocabulary, context and transformer.
        dimension: length of an embedding; 0 where the encoder has no projection.

    Source: reproduces transformers' ``CLIPTextModel`` and ``CLIPTextModelWithProjection`` without a mask.
    """

    def __init__(self, sizes: TextSizes, dimension: int = 0) -> None:
        super().__init__()
        width = sizes.transformer.width
        self.sizes, self.dimension = sizes, dimension
        self.token_embedding = nn.Embedding(sizes.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(sizes.context, width))
        self.transformer = Transformer(sizes.transformer)
        self.ln_final = nn.LayerNorm(width, sizes.transformer.epsilon)
        self.text_projection = nn.Parameter(torch.zeros(width, dimension)) if dimension else None

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Map ids int64 [N, L], start and end id included."""
        length = input_ids.shape[1]
        x = self.token_embedding(input_ids) + self.positional_embedding[:length]
        states = self.ln_final(self.transformer(x, torch.full((length, length), -torch.inf).triu(1)))
        if self.text_projection is None:
            return (states,)
        ends = input_ids if self.sizes.end_id is None else (input_ids == self.sizes.end_id).to(torch.int64)
        place = ends.argmax(1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return states, states.gather(1, place).squeeze(1) @ self.text_projection
