"""How unCLIP's decoder is told of a sentence and of an image's embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import padding_mask
from vlrt_export.modules.dense import Dense


@dataclass(frozen=True)
class DecoderTextSizes:
    """Length of an embedding, of the decoder's time embedding, of its prompt states; and states made of an image."""

    embedding: int
    time: int
    states: int
    tokens: int


class DecoderText(nn.Module):
    """Weights of `GuidedText` and `UnguidedText`.

    Source: Ramesh et al. (arXiv 2204.06125), section 2.1; reproduces diffusers' ``UnCLIPTextProjModel``.
    """

    def __init__(self, sizes: DecoderTextSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.unguided = nn.Parameter(torch.zeros(sizes.embedding))
        self.text_time = Dense(sizes.embedding, sizes.time)
        self.image_time = Dense(sizes.embedding, sizes.time)
        self.image_states = Dense(sizes.embedding, sizes.tokens * sizes.states)
        self.text_states = Dense(sizes.embedding, sizes.states)
        self.norm = nn.LayerNorm(sizes.states)

    def forward(
        self, prompt_states: Tensor, text_embedding: Tensor, image_embedding: Tensor, prompt_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States of image and sentence, an embedding beside that of time, and what is added to the scores.

        Args:
            prompt_states: [N, L, D].
            text_embedding, image_embedding: [N, D].
            prompt_mask: int64 [N, L], 1 where there is a token.

        Returns:
            [N, tokens + L, C], [N, T], [N, tokens + L].
        """
        time = self.text_time(text_embedding) + self.image_time(image_embedding)
        tokens = self.sizes.tokens
        image = self.image_states(image_embedding).reshape(-1, self.sizes.states, tokens).transpose(1, 2)
        states = torch.cat([image, self.norm(self.text_states(prompt_states))], 1)
        return states, time, F.pad(padding_mask(prompt_mask > 0), (tokens, 0))


class GuidedText(nn.Module):
    """What the decoder is told in conditional rows; see `DecoderText.forward`."""

    def __init__(self, text: DecoderText) -> None:
        super().__init__()
        self.text = text

    def forward(
        self, prompt_states: Tensor, text_embedding: Tensor, image_embedding: Tensor, prompt_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        states, time, bias = self.text(prompt_states, text_embedding, image_embedding, prompt_mask)
        return states, time, bias


class UnguidedText(nn.Module):
    """What the decoder is told in unconditional rows: a learned embedding stands for every image's."""

    def __init__(self, text: DecoderText) -> None:
        super().__init__()
        self.text = text

    def forward(
        self, prompt_states: Tensor, text_embedding: Tensor, prompt_mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        image = self.text.unguided.expand(text_embedding.shape[0], -1)
        states, time, bias = self.text(prompt_states, text_embedding, image, prompt_mask)
        return states, time, bias
