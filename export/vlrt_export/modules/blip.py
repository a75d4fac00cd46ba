"""BLIP's graphs (Li et al., arXiv 2201.12086) around its transformers: questions, matching, contrastive space."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import padding_mask
from vlrt_export.modules.bert import BertEncoder


class QuestionEncoder(nn.Module):
    """Image states [N, S, M] and questions [N, L] to question states [N, L, C] and their padding mask [N, L]."""

    def __init__(self, encoder: BertEncoder, pad_id: int) -> None:
        super().__init__()
        self.encoder, self.pad_id = encoder, pad_id

    def forward(self, image_states: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        mask = padding_mask(input_ids != self.pad_id)
        return self.encoder(input_ids, mask, image_states), mask


class MatchHead(nn.Module):
    """Image states [N, S, M] and sentences [N·k, L] to the probability that each describes its image, [N·k].

    Sentences of one image are neighbours; its states are never expanded.
    """

    def __init__(self, encoder: BertEncoder, head: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.encoder, self.head, self.pad_id = encoder, head, pad_id

    def forward(self, image_states: Tensor, input_ids: Tensor) -> Tensor:
        mask = padding_mask(input_ids != self.pad_id)
        states = self.encoder(input_ids, mask, image_states)
        return self.head(states[:, 0]).softmax(-1)[:, 1]  # type: ignore[no-any-return]


class ImageEmbedding(nn.Module):
    """Image states [N, S, M] to embeddings [N, D] of length one."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, image_states: Tensor) -> Tensor:
        return F.normalize(self.projection(image_states[:, 0]), dim=-1)


class TextEmbedding(nn.Module):
    """Sentences [N, L] to embeddings [N, D] of length one."""

    def __init__(self, encoder: BertEncoder, projection: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.encoder, self.projection, self.pad_id = encoder, projection, pad_id

    def forward(self, input_ids: Tensor) -> Tensor:
        states = self.encoder(input_ids, padding_mask(input_ids != self.pad_id))
        return F.normalize(self.projection(states[:, 0]), dim=-1)
