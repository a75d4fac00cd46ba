"""LLaMA (Touvron et al., arXiv 2302.13971), and Vicuna, which is one, as one step over in-place caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import KeysValues, Places, cached_attention, last_tokens, place_prefix
from vlrt_export.modules.dense import Dense, activate, embedding
from vlrt_export.modules.gpt2 import DecoderSizes
from vlrt_export.modules.rms_norm import RmsNorm


@dataclass(frozen=True)
class LlamaSizes(DecoderSizes):
    """Sizes of a LLaMA decoder with as many heads for keys and values as for queries.

    Args:
        theta: of the slowest rotation's wavelength, 2π·θ.
    """

    activation: str = "silu"
    epsilon: float = 1e-6
    theta: float = 10000.0


def rotations(positions: int, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, width / 2] that turn a head of `width` numbers at each position.

    Source: Su et al. (arXiv 2104.09864), section 3.2.2; in float32 as ``LlamaRotaryEmbedding`` of transformers.
    """
    # On the CPU, as modules are built without weights on another device.
    pairs = torch.arange(0, width, 2, dtype=torch.float32, device="cpu")
    angles = torch.arange(positions, dtype=torch.float32, device="cpu")[:, None] / theta ** (pairs / width)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Heads of [R, W, H·D], each turned by the cosines and sines [R, W, D / 2] of its position.

    A head's first half are the first numbers of its pairs, as transformers stores LLaMA's weights.
    """
    first, second = torch.unflatten(x, -1, (-1, 2, cosine.shape[-1])).unbind(-2)
    c, s = cosine[:, :, None], sine[:, :, None]
    return torch.stack([first * c - second * s, second * c + first * s], -2).flatten(2)


class _Layer(nn.Module):
    def __init__(self, sizes: LlamaSizes) -> None:
        super().__init__()
        self.heads, self.activation = sizes.heads, sizes.activation
        self.norm1 = RmsNorm(sizes.width, sizes.epsilon)
        self.qkv = Dense(sizes.width, 3 * sizes.width, bias=False)
        self.output = Dense(sizes.width, sizes.width, bias=False)
        self.norm2 = RmsNorm(sizes.width, sizes.epsilon)
        self.gate_up = Dense(sizes.width, 2 * sizes.feed_forward, bias=False)
        self.down = Dense(sizes.feed_forward, sizes.width, bias=False)

    def forward(
        self, x: Tensor, past: KeysValues, places: Places, turn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, KeysValues]:
        qkv, width = self.qkv(self.norm1(x)), x.shape[-1]
        query, key = rotate(qkv[..., : 2 * width], *turn).chunk(2, -1)
        mixed, present = cached_attention(query, key, qkv[..., 2 * width :], past, places, self.heads)
        x = x + self.output(mixed)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(activate(gate, self.activation) * up), present


class Llama(nn.Module):
    """Tokens, behind an image's prefix, to the logits of what follows them.

    Args:
        sizes: of the transformer.
        tied: whether the last layer's matrix is the token embedding.
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, sizes: LlamaSizes, tied: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.words = embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.norm = RmsNorm(sizes.width, sizes.epsilon)
        self.head = self.words if tied else embedding(sizes.vocabulary, sizes.width)
        # Tables, as an angle of 2,000 has no fraction left in half precision; its cosine does.
        cosine, sine = rotations(sizes.positions, sizes.head_width, sizes.theta)
        self.register_buffer("cosine", cosine, persistent=False)
        self.register_buffer("sine", sine, persistent=False)

    def memory(self, states: Tensor) -> list[KeysValues]:
        """There is no cross-attention."""
        return []

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        """First states [R, W, C] of tokens [R, W]; their positions turn queries and keys."""
        return cast(Tensor, self.words(token))

    def embed_prefixed(self, prefix: Tensor, token: Tensor, position: Tensor) -> Tensor:
        """The same where the first positions of B images are taken by their prefix [B, Q, C]."""
        return place_prefix(self.words(token), prefix, position)

    def forward(
        self,
        embedded: Tensor,
        new_length: Tensor,
        places: Places,
        past: list[KeysValues],
        memory: list[KeysValues] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """One call over R rows of W tokens; see `vlrt_export.modules.gpt2.Gpt2.forward`."""
        first = places.last.long() - new_length.long() + 1
        position = first[:, None] + torch.arange(embedded.shape[1])
        turn = self.cosine[position], self.sine[position]
        x, present = embedded, []
        for layer, before in zip(self.layers, past):
            x, extended = layer(x, before, places, turn)
            present.append(extended)
        return F.linear(self.norm(last_tokens(x, new_length)), self.head.weight), present
