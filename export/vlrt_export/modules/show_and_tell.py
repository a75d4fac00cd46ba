"""Show and Tell: an LSTM that sees the image once, before the first word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.caption_step import lstm_gates, lstm_update


@dataclass(frozen=True)
class ShowAndTellSizes:
    """Widths of the layers: regions in, LSTM, word and image embedding, vocabulary."""

    regions: int
    hidden: int
    embedding: int
    vocabulary: int


class ShowAndTell(nn.Module):
    """The neural image captioner; parameters are named as in our own checkpoints.

    The image embedding is the LSTM's input at t = -1; it does not initialise the state, which is zero.

    Source: Vinyals et al. (arXiv 1411.4555), equations 10 to 12.
    """

    def __init__(self, sizes: ShowAndTellSizes) -> None:
        super().__init__()
        self.image_embedding = nn.Linear(sizes.regions, sizes.embedding)
        self.embedding = nn.Embedding(sizes.vocabulary, sizes.embedding)
        self.lstm = nn.LSTMCell(sizes.embedding, sizes.hidden)
        self.output = nn.Linear(sizes.hidden, sizes.vocabulary)

    def memory(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """The state [B, H] twice (hidden, cell) after the LSTM has read the image from its regions [B, S, C]."""
        return self._advance(self.image_embedding(regions.mean(1)))

    def step(self, token: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [R, V], next hidden and cell [R, H] after the words `token` [R]."""
        hidden, cell = self.lstm(self.embedding(token), (hidden, cell))
        return self.output(hidden), hidden, cell

    def _advance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Written out, since an exported LSTMCell would carry weights for the zero state it never uses.
        gates = F.linear(x, self.lstm.weight_ih, self.lstm.bias_ih + self.lstm.bias_hh)
        return lstm_update(gates, torch.zeros_like(gates[:, : self.lstm.hidden_size]))


class ShowAndTellStep(nn.Module):
    """The step graph: both LSTM matrices side by side over [x; h]; arguments as in `ShowAndTell.step`."""

    def __init__(self, model: ShowAndTell) -> None:
        super().__init__()
        self.embedding = model.embedding
        self.gates = lstm_gates(model.lstm)
        self.output = model.output

    def forward(self, token: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance every row by one word."""
        gates = self.gates(torch.cat([self.embedding(token), hidden], 1))
        hidden, cell = lstm_update(gates, cell)
        return self.output(hidden), hidden, cell
