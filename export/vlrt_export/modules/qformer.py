"""The querying transformer of BLIP-2 (Li et al., arXiv 2301.12597, section 3.1) and of InstructBLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import (
    cross_attention,
    join_heads,
    memory_keys_values,
    padding_mask,
    split_heads,
)
from vlrt_export.modules.dense import ACTIVATIONS, Dense, activate, embedding


@dataclass(frozen=True)
class QFormerSizes:
    """What decides the shape of a Q-Former.

    Args:
        width, layers, heads, feed_forward: of the transformer.
        memory_width: of the image states that every `cross_every`-th layer's queries read, from the first on.
        queries: how many learned ones there are.
        vocabulary, positions: of the text it also reads; 0 where it reads none.
        activation: transformers' name.
        epsilon: of the layer norms.
    """

    width: int
    layers: int
    heads: int
    feed_forward: int
    memory_width: int
    queries: int = 32
    cross_every: int = 2
    vocabulary: int = 0
    positions: int = 0
    activation: str = "gelu"
    epsilon: float = 1e-12

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads or self.cross_every < 1 or self.queries < 1:
            raise ValueError(f"{self.queries} queries of width {self.width} over {self.heads} heads")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation `{self.activation}` is not one of {', '.join(ACTIVATIONS)}")


class _Attention(nn.Module):
    """Attention and what follows it: projection, residual, norm."""

    def __init__(self, sizes: QFormerSizes, memory_width: int) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query = Dense(sizes.width, sizes.width)
        self.key_value = Dense(memory_width, 2 * sizes.width)
        self.output = Dense(sizes.width, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)

    def among(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """States [N, L, C] of one another, under an additive mask [N, L]."""
        query, (key, value) = self.query(x), self.key_value(x).chunk(2, -1)
        q, k, v = (split_heads(part, self.heads) for part in (query, key, value))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
        if mask is not None:
            scores = scores + mask[:, None, None, :]
        return self._after(join_heads(scores.softmax(-1) @ v), x)

    def over(self, x: Tensor, states: Tensor) -> Tensor:
        """States [N·k, L, C] of image states [N, S, M], which are never expanded."""
        keys, values = self.key_value(states).chunk(2, -1)
        return self._after(cross_attention(self.query(x), memory_keys_values(keys, values, self.heads)), x)

    def _after(self, mixed: Tensor, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.output(mixed) + x))


class _FeedForward(nn.Module):
    def __init__(self, sizes: QFormerSizes) -> None:
        super().__init__()
        self.activation = sizes.activation
        self.intermediate = Dense(sizes.width, sizes.feed_forward)
        self.output = Dense(sizes.feed_forward, sizes.width)
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.norm(self.output(activate(self.intermediate(x), self.activation)) + x))


class _Layer(nn.Module):
    """Queries and words attend to each other; then each kind goes its own way."""

    def __init__(self, sizes: QFormerSizes, number: int) -> None:
        super().__init__()
        self.attention = _Attention(sizes, sizes.width)
        self.cross = _Attention(sizes, sizes.memory_width) if number % sizes.cross_every == 0 else None
        self.queries = _FeedForward(sizes)
        self.words = _FeedForward(sizes) if sizes.vocabulary else None

    def forward(self, x: Tensor, mask: Tensor | None, queries: int, states: Tensor | None) -> Tensor:
        x = self.attention.among(x, mask)
        seen, said = x[:, :queries], x[:, queries:]
        if states is None:
            return self._say(said)
        if self.cross is not None:
            seen = self.cross.over(seen, states)
        seen = self.queries(seen)
        return seen if mask is None else torch.cat([seen, self._say(said)], 1)

    def _say(self, said: Tensor) -> Tensor:
        if self.words is None:
            raise ValueError("this Q-Former reads no text")
        return cast(Tensor, self.words(said))


class QFormer(nn.Module):
    """Learned queries that read an image, and text where it has a vocabulary."""

    def __init__(self, sizes: QFormerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.query_tokens = nn.Parameter(torch.randn(1, sizes.queries, sizes.width))
        self.word = embedding(sizes.vocabulary, sizes.width) if sizes.vocabulary else None
        self.position = embedding(sizes.positions, sizes.width) if sizes.vocabulary else None
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.layers = nn.ModuleList(_Layer(sizes, number) for number in range(sizes.layers))

    def see(self, states: Tensor) -> Tensor:
        """Image states [N, S, M] to what the queries make of them, [N, Q, C]."""
        queries = self.query_tokens.expand(states.shape[0], -1, -1)
        return self._layers(queries, None, self.sizes.queries, states)

    def see_and_read(self, states: Tensor, ids: Tensor, present: Tensor) -> Tensor:
        """The same beside texts [N·k, L], an image's k texts neighbours: [N·k, Q, C]; `present` is false at padding."""
        queries = self.query_tokens.expand(ids.shape[0], -1, -1)
        mask = F.pad(padding_mask(present), (self.sizes.queries, 0))
        x = torch.cat([queries, self._embed(ids)], 1)
        return self._layers(x, mask, self.sizes.queries, states)[:, : self.sizes.queries]

    def read(self, ids: Tensor, present: Tensor) -> Tensor:
        """Texts [N, L] alone to states [N, L, C]."""
        return self._layers(self._embed(ids), padding_mask(present), 0, None)

    def _embed(self, ids: Tensor) -> Tensor:
        if self.word is None or self.position is None:
            raise ValueError("this Q-Former reads no text")
        return cast(Tensor, self.word(ids) + self.position(torch.arange(ids.shape[1])))

    def _layers(self, x: Tensor, mask: Tensor | None, queries: int, states: Tensor | None) -> Tensor:
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask, queries, states)
        return x


class QueryProjection(nn.Module):
    """Image states [N, S, M] to the language model's inputs [N, Q, W]."""

    def __init__(self, qformer: QFormer, projection: nn.Module) -> None:
        super().__init__()
        self.qformer, self.projection = qformer, projection

    def forward(self, image_states: Tensor) -> Tensor:
        return cast(Tensor, self.projection(self.qformer.see(image_states)))


class InstructedProjection(nn.Module):
    """The same where the queries also read the instruction, [N, L] of the Q-Former's own ids."""

    def __init__(self, qformer: QFormer, projection: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.qformer, self.projection, self.pad_id = qformer, projection, pad_id

    def forward(self, image_states: Tensor, query_ids: Tensor) -> Tensor:
        seen = self.qformer.see_and_read(image_states, query_ids, query_ids != self.pad_id)
        return cast(Tensor, self.projection(seen))


class QueryMatch(nn.Module):
    """Image states [N, S, M] and texts [N·k, L] to the probability that each describes its image, [N·k]."""

    def __init__(self, qformer: QFormer, head: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.qformer, self.head, self.pad_id = qformer, head, pad_id

    def forward(self, image_states: Tensor, input_ids: Tensor) -> Tensor:
        seen = self.qformer.see_and_read(image_states, input_ids, input_ids != self.pad_id)
        return self.head(seen).mean(1).softmax(-1)[:, 1]  # type: ignore[no-any-return]


class QueryEmbedding(nn.Module):
    """Image states [N, S, M] to one embedding of length one for each query, [N, Q, D]."""

    def __init__(self, qformer: QFormer, projection: nn.Module) -> None:
        super().__init__()
        self.qformer, self.projection = qformer, projection

    def forward(self, image_states: Tensor) -> Tensor:
        return F.normalize(self.projection(self.qformer.see(image_states)), dim=-1)


class TextQueryEmbedding(nn.Module):
    """Texts [N, L] to embeddings of length one, [N, D]."""

    def __init__(self, qformer: QFormer, projection: nn.Module, pad_id: int) -> None:
        super().__init__()
        self.qformer, self.projection, self.pad_id = qformer, projection, pad_id

    def forward(self, input_ids: Tensor) -> Tensor:
        states = self.qformer.read(input_ids, input_ids != self.pad_id)
        return F.normalize(self.projection(states[:, 0]), dim=-1)
