"""A linear layer whose matrix lies as products read it, and the feed-forward activations of decoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt.errors import VlrtError

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish")
"""As configurations of transformers name them."""


class Dense(nn.Module):
    """x · W + b with W [in, out]: traced to one product without a transposed copy of the matrix."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding whose random rows have length one on average, so that logits made with them stay small."""
    made = nn.Embedding(rows, width)
    nn.init.normal_(made.weight, std=width**-0.5)
    return made


def activate(x: Tensor, name: str) -> Tensor:
    """The activation that transformers calls `name`.

    Raises:
        VlrtError: an unknown one.
    """
    if name == "gelu":
        return F.gelu(x)
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return F.gelu(x, approximate="tanh")
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    if name == "relu":
        return F.relu(x)
    if name in ("silu", "swish"):
        return F.silu(x)
    raise VlrtError(f"activation `{name}` is not known", f"known are {', '.join(ACTIVATIONS)}")
