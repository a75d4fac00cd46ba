"""The decoder of the most used public PyTorch implementation of Show, Attend and Tell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlrt_export.modules.attention import SOFT, attention_weights, per_image
from vlrt_export.modules.caption_step import StepWeights


@dataclass(frozen=True)
class TutorialSizes:
    """Widths of the layers: regions in, LSTM, word embedding, attention space, vocabulary."""

    regions: int
    hidden: int
    embedding: int
    attention: int
    vocabulary: int


class TutorialAttention(nn.Module):
    """full_att(ReLU(encoder_att(a) + decoder_att(h)))."""

    def __init__(self, sizes: TutorialSizes) -> None:
        super().__init__()
        self.encoder_att = nn.Linear(sizes.regions, sizes.attention)
        self.decoder_att = nn.Linear(sizes.hidden, sizes.attention)
        self.full_att = nn.Linear(sizes.attention, 1)


class TutorialDecoder(nn.Module):
    """Show, Attend and Tell of sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning, behaviour and names.

    It differs from the paper: ReLU instead of tanh in the attention, a linear first state (no tanh, no hidden
    layer), a gate per channel instead of one per image, no deep output (the logits read h alone), untied words.

    Args:
        sizes: widths of the layers.
        attention: `soft`, `hard` or `hard-sampled`; the reference has soft attention only.
    """

    def __init__(self, sizes: TutorialSizes, attention: str = SOFT) -> None:
        super().__init__()
        self.mode = attention
        self.attention = TutorialAttention(sizes)
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.embedding)
        self.decode_step = nn.LSTMCell(sizes.embedding + sizes.regions, sizes.hidden)
        self.init_h = nn.Linear(sizes.regions, sizes.hidden)
        self.init_c = nn.Linear(sizes.regions, sizes.hidden)
        self.f_beta = nn.Linear(sizes.hidden, sizes.regions)
        self.fc = nn.Linear(sizes.hidden, sizes.vocabulary)

    def memory(self, regions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Annotations [B, S, C] (the regions themselves), attention keys [B, S, A], first hidden and cell [B, H]."""
        mean = regions.mean(1)
        return regions.clone(), self.attention.encoder_att(regions), self.init_h(mean), self.init_c(mean)

    def step(
        self, token: Tensor, hidden: Tensor, cell: Tensor, memory: tuple[Tensor, Tensor], uniforms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One word further; arguments and results as in `ShowAttendTell.step`."""
        annotations, keys = memory
        query = per_image(self.attention.decoder_att(hidden), keys)
        energies = self.attention.full_att((keys.unsqueeze(1) + query.unsqueeze(2)).relu()).squeeze(-1)
        alpha = attention_weights(energies.flatten(0, 1), self.mode, uniforms)
        z = (per_image(alpha, annotations) @ annotations).flatten(0, 1) * self.f_beta(hidden).sigmoid()
        hidden, cell = self.decode_step(torch.cat([self.embedding(token), z], 1), (hidden, cell))
        return self.fc(hidden), hidden, cell, alpha

    def step_weights(self) -> StepWeights:
        """The layers of one step, for the graph."""
        return StepWeights(
            embedding=self.embedding.weight,
            query=self.attention.decoder_att,
            score=self.attention.full_att.weight,
            gate=self.f_beta,
            lstm=self.decode_step,
            deep_output=None,
            head=(self.fc.weight, self.fc.bias),
            nonlinearity=torch.relu,
        )
