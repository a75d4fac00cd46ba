"""CoCa: an image encoder with an attentional pooler, text layers that see no image, and text layers that do.

Parameters are named as in open_clip. Source: Yu et al. (arXiv 2205.01917); reproduces mlfoundations/open_clip
``transformer.py`` and ``coca_model.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt_export.modules.attention_kv import (
    KeysValues,
    Places,
    cached_attention,
    cross_attention,
    join_heads,
    last_tokens,
    memory_keys_values,
    split_heads,
)
from vlrt_export.modules.clip_transformer import ResidualAttentionBlock, Transformer, TransformerSizes


@dataclass(frozen=True)
class CocaSizes:
    """What decides CoCa's shape.

    Args:
        image_size, patch_size: sides in pixels.
        vision: the image transformer.
        queries, pooler_heads: of the attentional pooler; the first query is the contrastive embedding.
        text: the layers without cross-attention.
        fusion: the layers with it, of the same width and heads.
        vocabulary, context: of texts.
        dimension: of the contrastive space, and of what cross-attention reads.
        corrected_mask: whether the text's mask of padding is in its right place, as in later trainings.
    """

    image_size: int
    patch_size: int
    vision: TransformerSizes
    queries: int
    pooler_heads: int
    text: TransformerSizes
    fusion: TransformerSizes
    vocabulary: int
    context: int
    dimension: int
    corrected_mask: bool = False

    def __post_init__(self) -> None:
        if (self.text.width, self.text.heads) != (self.fusion.width, self.fusion.heads):
            raise ValueError("the text layers and the multimodal layers differ in width or heads")
        if self.dimension != self.fusion.width:
            raise ValueError(f"cross-attention of width {self.fusion.width} cannot read states of {self.dimension}")
        if self.queries < 2 or self.dimension % self.pooler_heads:
            raise ValueError(f"a pooler needs two queries or more, and {self.dimension} split over its heads")


@dataclass(frozen=True)
class DecoderShape:
    """What graphs of the decoder need to know: all layers have caches, the last ones a memory too."""

    vocabulary: int
    layers: int
    heads: int
    head_width: int
    memory_layers: int


class _PoolerAttention(nn.Module):
    """Attention of queries to states that may be of another width."""

    def __init__(self, width: int, states: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        if states == width:
            self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        else:
            self.q_proj_weight = nn.Parameter(torch.randn(width, width) * width**-0.5)
            self.k_proj_weight = nn.Parameter(torch.randn(width, states) * states**-0.5)
            self.v_proj_weight = nn.Parameter(torch.randn(width, states) * states**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, states: Tensor) -> Tensor:
        weights = (
            self.in_proj_weight.chunk(3)
            if hasattr(self, "in_proj_weight")
            else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        )
        biases = self.in_proj_bias.chunk(3)
        given = (queries, states, states)
        q, k, v = (split_heads(F.linear(x, w, b), self.heads) for x, w, b in zip(given, weights, biases))
        mixed = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(-1) @ v
        return cast(Tensor, self.out_proj(join_heads(mixed)))


class _Pooler(nn.Module):
    def __init__(self, sizes: CocaSizes) -> None:
        super().__init__()
        width, states = sizes.dimension, sizes.vision.width
        self.query = nn.Parameter(torch.randn(sizes.queries, width))
        self.attn = _PoolerAttention(width, states, sizes.pooler_heads)
        self.ln_q = nn.LayerNorm(width)
        self.ln_k = nn.LayerNorm(states)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.ln_q(self.query).expand(x.shape[0], -1, -1)
        return cast(Tensor, self.attn(queries, self.ln_k(x)))


class CocaVision(nn.Module):
    """Pixels [N, 3, H, W] to embeddings [N, D] of length one, and to the states [N, Q − 1, D] that captions read."""

    def __init__(self, sizes: CocaSizes) -> None:
        super().__init__()
        width = sizes.vision.width
        positions = (sizes.image_size // sizes.patch_size) ** 2 + 1
        self.conv1 = nn.Conv2d(3, width, sizes.patch_size, sizes.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(positions, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(sizes.vision)
        self.attn_pool = _Pooler(sizes)
        self.ln_post = nn.LayerNorm(sizes.dimension)
        self.proj = nn.Parameter(torch.randn(sizes.dimension, sizes.dimension) * sizes.dimension**-0.5)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        start = self.class_embedding.expand(patches.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([start, patches], 1) + self.positional_embedding)
        pooled = self.ln_post(self.attn_pool(self.transformer(x)))
        return _normalised(pooled[:, 0] @ self.proj), pooled[:, 1:]


class CocaText(nn.Module):
    """Ids [N, L], padded to the context with id 0, to embeddings [N, D] of length one, read off an appended token.

    Source: the mask of open_clip's ``TextTransformer``, which in the published trainings stands one place too early:
    what follows a padding id is hidden, and so is the appended token from itself behind padding.
    """

    causal_mask: Tensor

    def __init__(self, sizes: CocaSizes) -> None:
        super().__init__()
        width = sizes.text.width
        self.corrected = sizes.corrected_mask
        self.token_embedding = nn.Embedding(sizes.vocabulary, width)
        self.cls_emb = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(sizes.context + 1, width) * width**-0.5)
        self.transformer = Transformer(sizes.text)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, sizes.dimension) * width**-0.5)
        self.register_buffer("causal_mask", self.build_mask(sizes.context), persistent=False)

    @staticmethod
    def build_mask(context: int) -> Tensor:
        """What no token sees: those after it, and the appended one [context + 1, context + 1]."""
        return torch.full((context + 1, context + 1), -torch.inf).triu(1)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1] + 1
        last = self.cls_emb.expand(input_ids.shape[0], 1, -1)
        x = torch.cat([self.token_embedding(input_ids), last], 1) + self.positional_embedding[:length]
        words, always = input_ids != 0, torch.ones_like(input_ids[:, :1], dtype=torch.bool)
        seen = torch.cat([words, always] if self.corrected else [always, words], 1)
        hidden = torch.where(seen, 0.0, -torch.inf)[:, None, None, :]
        x = self.transformer(x, self.causal_mask[:length, :length] + hidden)
        return _normalised(self.ln_final(x[:, -1]) @ self.text_projection)


class _CrossBlock(ResidualAttentionBlock):
    """A layer whose attention goes to the image, with a norm of its own for the image's states."""

    def __init__(self, sizes: TransformerSizes) -> None:
        super().__init__(sizes)
        self.ln_1_kv = nn.LayerNorm(sizes.width, sizes.epsilon)


class CocaFusion(nn.Module):
    """The layers that see the image, and the vocabulary."""

    def __init__(self, sizes: CocaSizes) -> None:
        super().__init__()
        layers, width = range(sizes.fusion.layers), sizes.fusion.width
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(sizes.fusion) for _ in layers)
        self.cross_attn = nn.ModuleList(_CrossBlock(sizes.fusion) for _ in layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, sizes.vocabulary) * width**-0.5)


class Coca(nn.Module):
    """All of it, named as in open_clip."""

    def __init__(self, sizes: CocaSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.visual = CocaVision(sizes)
        self.text = CocaText(sizes)
        self.text_decoder = CocaFusion(sizes)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())


class CocaDecoder(nn.Module):
    """Tokens to the logits of what follows them; see `vlrt_export.modules.gpt2.Gpt2`.

    Each of the first layers, and each of the pairs after them, has a cache; each pair has a memory.
    """

    def __init__(self, model: Coca) -> None:
        super().__init__()
        sizes = model.sizes
        heads, width = sizes.text.heads, sizes.text.width
        layers = sizes.text.layers + sizes.fusion.layers
        self.sizes = DecoderShape(sizes.vocabulary, layers, heads, width // heads, sizes.fusion.layers)
        self.heads = heads
        self.text = model.text
        self.text_decoder = model.text_decoder

    def memory(self, states: Tensor) -> list[KeysValues]:
        """Keys and values of every cross-attention from image states [B, S, D]."""
        return [self._memory(cast(_CrossBlock, layer), states) for layer in self.text_decoder.cross_attn]

    def embed(self, token: Tensor, position: Tensor) -> Tensor:
        """First states [R, W, C] of tokens [R, W] at their positions."""
        return cast(Tensor, self.text.token_embedding(token) + self.text.positional_embedding[position])

    def forward(
        self,
        embedded: Tensor,
        new_length: Tensor,
        places: Places,
        past: list[KeysValues],
        memory: list[KeysValues] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """One call over R rows of W tokens, R = B·k; see `vlrt_export.modules.gpt2.Gpt2.forward`."""
        x, present, waiting = embedded, [], iter(past)
        for layer in self.text.transformer.resblocks:
            x, extended = self._attend(cast(ResidualAttentionBlock, layer), x, next(waiting), places)
            present.append(extended)
        pairs = zip(self.text_decoder.resblocks, self.text_decoder.cross_attn, memory or [])
        for layer, seeing, seen in pairs:
            x, extended = self._attend(cast(ResidualAttentionBlock, layer), x, next(waiting), places)
            present.append(extended)
            x = self._look(cast(_CrossBlock, seeing), x, seen, mask)
        last = self.text_decoder.ln_final(last_tokens(x, new_length))
        logits: Tensor = last @ self.text_decoder.text_projection
        return logits, present

    def _memory(self, layer: _CrossBlock, states: Tensor) -> KeysValues:
        width, inside = states.shape[-1], layer.attn
        both = F.linear(layer.ln_1_kv(states), inside.in_proj_weight[width:], inside.in_proj_bias[width:])
        keys, values = both.chunk(2, -1)
        return memory_keys_values(keys, values, self.heads)

    def _attend(
        self, layer: ResidualAttentionBlock, x: Tensor, past: KeysValues, places: Places
    ) -> tuple[Tensor, KeysValues]:
        inside = layer.attn
        query, key, value = F.linear(layer.ln_1(x), inside.in_proj_weight, inside.in_proj_bias).chunk(3, -1)
        mixed, present = cached_attention(query, key, value, past, places, self.heads)
        x = x + inside.out_proj(mixed)
        return x + layer.mlp(layer.ln_2(x)), present

    def _look(self, layer: _CrossBlock, x: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        width, inside = x.shape[-1], layer.attn
        query = F.linear(layer.ln_1(x), inside.in_proj_weight[:width], inside.in_proj_bias[:width])
        x = x + inside.out_proj(cross_attention(query, memory, mask))
        return cast(Tensor, x + layer.mlp(layer.ln_2(x)))


def _normalised(x: Tensor) -> Tensor:
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x / length
