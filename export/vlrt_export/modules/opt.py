"""OPT (Zhang et al., arXiv 2205.01068) as one step over in-place caches, after an image's prefix where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import KeysValues, Places, cached_attention, last_tokens, place_prefix
from vlrt_export.modules.dense import Dense, activate, embedding
from vlrt_export.modules.gpt2 import DecoderSizes

OFFSET = 2
"""Rows of the position embedding that no token uses: fairseq counted positions from the padding id on."""


@dataclass(frozen=True)
class OptSizes(DecoderSizes):
    """Sizes of an OPT decoder; `positions` leaves out the `OFFSET` rows.

    Args:
        embedding_width: of the token embedding, projected to `width` where it differs; 0 where it is `width`.
        norm_first: whether layers normalise before attention and feed-forward; the size of 350 M does after.
        final_norm: whether the last layer's states are normalised.
    """

    activation: str = "relu"
    embedding_width: int = 0
    norm_first: bool = True
    final_norm: bool = True

    @property
    def projected(self) -> bool:
        return self.embedding_width not in (0, self.width)


class _Layer(nn.Module):
    def __init__(self, sizes: OptSizes) -> None:
        super().__init__()
        self.heads, self.activation, self.norm_first = sizes.heads, sizes.activation, sizes.norm_first
        self.norm1 = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.qkv = Dense(sizes.width, 3 * sizes.width)
        self.output = Dense(sizes.width, sizes.width)
        self.norm2 = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.fc1 = Dense(sizes.width, sizes.feed_forward)
        self.fc2 = Dense(sizes.feed_forward, sizes.width)

    def forward(self, x: Tensor, past: KeysValues, places: Places) -> tuple[Tensor, KeysValues]:
        query, key, value = self.qkv(self.norm1(x) if self.norm_first else x).chunk(3, -1)
        mixed, present = cached_attention(query, key, value, past, places, self.heads)
        x = x + self.output(mixed)
        if not self.norm_first:
            x = self.norm1(x)
        x = x + self.fc2(activate(self.fc1(self.norm2(x) if self.norm_first else x), self.activation))
        return x if self.norm_first else self.norm2(x), present


class Opt(nn.Module):
    """Tokens, behind an image's prefix, to the logits of what follows them.

    Args:
        sizes: of the transformer.
        tied: whether the last layer's matrix is the token embedding.
    """

    def __init__(self, sizes: OptSizes, tied: bool = True) -> None:
        super().__init__()
        self.sizes = sizes
        words = sizes.embedding_width or sizes.width
        self.words = embedding(sizes.vocabulary, words)
        self.position = embedding(sizes.positions + OFFSET, sizes.width)
        self.project_in = Dense(words, sizes.width, bias=False) if sizes.projected else None
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon) if sizes.final_norm else None
        self.project_out = Dense(sizes.width, words, bias=False) if sizes.projected else None
        self.head = self.words if tied else embedding(sizes.vocabulary, words)

    def memory(self, states: Tensor) -> list[KeysValues]:
        """There is no cross-attention."""
        return []

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        """First states [R, W, C] of tokens [R, W] at their positions."""
        return self._place(self.words(token), position)

    def embed_prefixed(self, prefix: Tensor, token: Tensor, position: Tensor) -> Tensor:
        """The same where the first positions of B images are taken by their prefix [B, Q, E]."""
        return self._place(place_prefix(self.words(token), prefix, position), position)

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
        x, present = embedded, []
        for layer, before in zip(self.layers, past):
            x, extended = layer(x, before, places)
            present.append(extended)
        x = last_tokens(x, new_length)
        for last in (self.norm, self.project_out):
            x = x if last is None else last(x)
        return F.linear(x, self.head.weight), present

    def _place(self, words: Tensor, position: Tensor) -> Tensor:
        states = words if self.project_in is None else self.project_in(words)
        return cast(Tensor, states + self.position(position + OFFSET))
