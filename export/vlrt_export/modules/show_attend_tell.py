"""Show, Attend and Tell as the paper writes it, over regions that an image encoder has found."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlrt_export.modules.attention import SOFT, attention_weights, per_image
from vlrt_export.modules.caption_step import StepWeights


@dataclass(frozen=True)
class ShowAttendTellSizes:
    """Widths of the layers: regions in, annotations, LSTM, word embedding, attention space, vocabulary."""

    regions: int
    annotation: int
    hidden: int
    embedding: int
    attention: int
    vocabulary: int


class Attention(nn.Module):
    """Additive attention (arXiv 1409.0473): score(tanh(annotation(a) + hidden(h)))."""

    def __init__(self, sizes: ShowAttendTellSizes) -> None:
        super().__init__()
        self.annotation = nn.Linear(sizes.annotation, sizes.attention)
        self.hidden = nn.Linear(sizes.hidden, sizes.attention)
        self.score = nn.Linear(sizes.attention, 1)


class DeepOutput(nn.Module):
    """tanh(x + hidden(h) + context(z)) against the tied embedding."""

    def __init__(self, sizes: ShowAttendTellSizes) -> None:
        super().__init__()
        self.hidden = nn.Linear(sizes.hidden, sizes.embedding)
        self.context = nn.Linear(sizes.annotation, sizes.embedding)
        self.bias = nn.Parameter(torch.zeros(sizes.vocabulary))


class ShowAttendTell(nn.Module):
    """The captioner with gate and deep output; parameters are named as in our own checkpoints.

    Args:
        sizes: widths of the layers.
        attention: `soft`, `hard` or `hard-sampled`.

    Source: Show, Attend and Tell (arXiv 1502.03044), section 3.1 and equations 1 to 7; the gate of section 4.2.1 as
    a vector, and an embedding tied to the output.
    """

    def __init__(self, sizes: ShowAttendTellSizes, attention: str = SOFT) -> None:
        super().__init__()
        self.mode = attention
        self.annotation = nn.Linear(sizes.regions, sizes.annotation)
        self.init_hidden = nn.Linear(sizes.annotation, sizes.hidden)
        self.init_cell = nn.Linear(sizes.annotation, sizes.hidden)
        self.attention = Attention(sizes)
        self.gate = nn.Linear(sizes.hidden, sizes.annotation)
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.embedding)
        self.lstm = nn.LSTMCell(sizes.embedding + sizes.annotation, sizes.hidden)
        self.output = DeepOutput(sizes)

    def memory(self, regions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything that the image contributes, computed once.

        Args:
            regions: [B, S, C], fp32.

        Returns:
            annotations [B, S, D], attention keys [B, S, A], first hidden and cell [B, H].
        """
        annotations = self.annotation(regions).relu()
        mean = annotations.mean(1)
        keys = self.attention.annotation(annotations)
        return annotations, keys, self.init_hidden(mean).tanh(), self.init_cell(mean).tanh()

    def step(
        self, token: Tensor, hidden: Tensor, cell: Tensor, memory: tuple[Tensor, Tensor], uniforms: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One word further, formula by formula.

        Args:
            token: [R], int64. hidden, cell: [R, H].
            memory: annotations [B, S, D] and attention keys [B, S, A], R = B*k.
            uniforms: [R, 1] in [0, 1), for sampled hard attention.

        Returns:
            logits [R, V], next hidden and cell [R, H], attention [R, S].
        """
        annotations, keys = memory
        x = self.embedding(token)
        query = per_image(self.attention.hidden(hidden), keys)
        energies = self.attention.score((keys.unsqueeze(1) + query.unsqueeze(2)).tanh()).squeeze(-1)
        alpha = attention_weights(energies.flatten(0, 1), self.mode, uniforms)
        z = (per_image(alpha, annotations) @ annotations).flatten(0, 1) * self.gate(hidden).sigmoid()
        hidden, cell = self.lstm(torch.cat([x, z], 1), (hidden, cell))
        deep = (x + self.output.hidden(hidden) + self.output.context(z)).tanh()
        return deep @ self.embedding.weight.T + self.output.bias, hidden, cell, alpha

    def step_weights(self) -> StepWeights:
        """The layers of one step, for the graph."""
        return StepWeights(
            embedding=self.embedding.weight,
            query=self.attention.hidden,
            score=self.attention.score.weight,
            gate=self.gate,
            lstm=self.lstm,
            deep_output=(self.output.hidden, self.output.context),
            head=(self.embedding.weight, self.output.bias),
        )
