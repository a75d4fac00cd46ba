"""CLIP's causal text transformer, read off at the end id; learned prompt vectors may stand in for tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlrt_export.modules.clip_transformer import Transformer, TransformerSizes


@dataclass(frozen=True)
class TextSizes:
    """Vocabulary, longest text in ids, transformer, and how the end is found.

    `end_id` is the id whose first occurrence is the end; `None` takes the largest id of the row, as the original
    does (and transformers, where a configuration carries the historic ``eos_token_id`` of 2).
    """

    vocabulary: int
    context: int
    transformer: TransformerSizes
    end_id: int | None = None


class TextTransformer(nn.Module):
    """Ids [N, L] to unnormalised embeddings [N, D].

    Args:
        sizes: vocabulary, context and transformer.
        dimension: length of an embedding.

    Source: Radford et al. (arXiv 2103.00020), section 2.4, and transformers' ``CLIPTextTransformer``; learned
    context as in CoOp (arXiv 2109.01134, equation 3).
    """

    causal_mask: Tensor

    def __init__(self, sizes: TextSizes, dimension: int) -> None:
        super().__init__()
        width = sizes.transformer.width
        self.end_id = sizes.end_id
        self.token_embedding = nn.Embedding(sizes.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.randn(sizes.context, width) * 0.02)
        self.transformer = Transformer(sizes.transformer)
        self.ln_final = nn.LayerNorm(width, sizes.transformer.epsilon)
        self.text_projection = nn.Parameter(torch.randn(width, dimension) * width**-0.5)
        mask = torch.full((sizes.context, sizes.context), -torch.inf).triu(1)
        self.register_buffer("causal_mask", mask, persistent=False)

    def forward(self, input_ids: Tensor, context: Tensor, context_index: Tensor) -> Tensor:
        """Embeds sentences.

        Args:
            input_ids: int64 [N, L], start and end id included, anything after the end.
            context: float32 [N, M, W], vectors that may replace token embeddings.
            context_index: int64 [N, L], the vector that stands at a place, -1 for the token itself.
        """
        length = input_ids.shape[1]
        x = _placed(self.token_embedding(input_ids), context, context_index)
        x = x + self.positional_embedding[:length]
        x = self.transformer(x, self.causal_mask[:length, :length])
        ends = input_ids if self.end_id is None else (input_ids == self.end_id).to(torch.int64)
        place = ends.argmax(1).view(-1, 1, 1).expand(-1, 1, x.shape[2])
        embedding: Tensor = self.ln_final(x.gather(1, place).squeeze(1)) @ self.text_projection
        return embedding


def _placed(tokens: Tensor, context: Tensor, index: Tensor) -> Tensor:
    """Token embeddings [N, L, W] with context vectors put where the index is not negative."""
    chosen = context.gather(1, index.clamp(min=0).unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
    return torch.where((index >= 0).unsqueeze(-1), chosen, tokens)
