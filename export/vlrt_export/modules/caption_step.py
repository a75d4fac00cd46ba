"""One step of an attentive LSTM captioner, with its matrices laid side by side for few, large products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.attention import HARD_SAMPLED, attention_weights, per_image


@dataclass(frozen=True)
class StepWeights:
    """The layers of a decoder that one step uses.

    Args:
        embedding: [V, E].
        query: hidden state to attention space, [A, H].
        score: [A]; its bias cancels in the softmax and is left out.
        gate: hidden state to context gate, [D, H] or, as in the paper, [1, H]; `None` without a gate.
        lstm: cell over [x; z].
        deep_output: the layers of hidden state and context in `tanh(x + L_h h + L_z z)`; `None` without.
        head: last layer to the vocabulary; its weight may be `embedding` itself.
        nonlinearity: of the additive attention.
    """

    embedding: Tensor
    query: nn.Linear
    score: Tensor
    gate: nn.Linear | None
    lstm: nn.LSTMCell
    deep_output: tuple[nn.Linear, nn.Linear] | None
    head: tuple[Tensor, Tensor]
    nonlinearity: Callable[[Tensor], Tensor] = torch.tanh


class CaptionStep(nn.Module):
    """The step graph: R live hypotheses against the memories of B images, R = B*k.

    Layers that read the same vector are concatenated (never multiplied out, so that fp16 values stay fp16 values):
    attention query and gate read the hidden state, the LSTM's two matrices read [x; z; h], and the deep output
    reads [h; z]. That leaves four matrix products and one small batched one per image.

    Args:
        weights: the decoder's layers.
        attention: one of `vlrt_export.modules.attention.MODES`.
    """

    def __init__(self, weights: StepWeights, attention: str) -> None:
        super().__init__()
        self.attention = attention
        self.nonlinearity = weights.nonlinearity
        # The same parameter twice where words are tied: the file holds it once.
        self.embedding = nn.Parameter(weights.embedding, requires_grad=False)
        tied = weights.head[0] is weights.embedding
        self.head_weight = self.embedding if tied else nn.Parameter(weights.head[0], requires_grad=False)
        self.head_bias = nn.Parameter(weights.head[1], requires_grad=False)
        self.score = _frozen(weights.score.reshape(-1, 1))
        self.attention_size = weights.query.out_features
        self.gated = weights.gate is not None
        self.query_gate = _stacked([weights.query] + ([weights.gate] if weights.gate else []))
        self.gates = lstm_gates(weights.lstm)
        self.deep_output = _side_by_side(*weights.deep_output) if weights.deep_output else None

    def forward(
        self,
        token: Tensor,
        hidden: Tensor,
        cell: Tensor,
        annotations: Tensor,
        attention_keys: Tensor,
        uniforms: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Advance every row by one word.

        Args:
            token: previous words [R], int64.
            hidden, cell: LSTM state [R, H].
            annotations: [B, S, D].
            attention_keys: annotations in attention space [B, S, A].
            uniforms: [R, 1] in [0, 1), only with sampled hard attention.

        Returns:
            logits [R, V], next hidden and cell [R, H], attention [R, S].
        """
        x = F.embedding(token, self.embedding)
        query_gate = self.query_gate(hidden)
        query = per_image(query_gate[:, : self.attention_size], attention_keys)
        energies = self.nonlinearity(attention_keys.unsqueeze(1) + query.unsqueeze(2)) @ self.score
        if self.attention == HARD_SAMPLED and uniforms is not None:
            uniforms = per_image(uniforms, attention_keys)
        attention = attention_weights(energies.squeeze(-1), self.attention, uniforms)
        z = (attention @ annotations).flatten(0, 1)
        if self.gated:
            z = z * query_gate[:, self.attention_size :].sigmoid()
        hidden, cell = lstm_update(self.gates(torch.cat([x, z, hidden], 1)), cell)
        return self._logits(x, z, hidden), hidden, cell, attention.flatten(0, 1)

    def _logits(self, x: Tensor, z: Tensor, hidden: Tensor) -> Tensor:
        output = hidden
        if self.deep_output is not None:
            output = torch.tanh(x + self.deep_output(torch.cat([hidden, z], 1)))
        return F.linear(output, self.head_weight, self.head_bias)


def lstm_gates(cell: nn.LSTMCell) -> nn.Linear:
    """One layer over [input; hidden] that gives the cell's four gates, in torch's order i, f, g, o."""
    weight = torch.cat([cell.weight_ih, cell.weight_hh], 1)
    return _linear(weight, cell.bias_ih + cell.bias_hh)


def lstm_update(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The next hidden state and cell [R, H] from gates [R, 4H] and the cell [R, H]."""
    i, f, g, o = gates.chunk(4, 1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _stacked(layers: list[nn.Linear]) -> nn.Linear:
    """One layer whose outputs are those of `layers` in order."""
    return _linear(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))


def _side_by_side(left: nn.Linear, right: nn.Linear) -> nn.Linear:
    """One layer over [a; b] that gives left(a) + right(b)."""
    return _linear(torch.cat([left.weight, right.weight], 1), left.bias + right.bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = _frozen(weight), _frozen(bias)
    return layer


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)
