"""DALL-E's transformer (Ramesh et al., arXiv 2102.12092) as one step over in-place caches: text, then codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt.attention_patterns import PatternSpec
from vlrt.errors import VlrtError
from vlrt_export.modules.attention_kv import KeysValues, Places, cached_attention, last_tokens, place_prefix
from vlrt_export.modules.dense import Dense, embedding

FULL = ""
"""Name of the attention that sees everything earlier, among those of patterns."""


@dataclass(frozen=True)
class DalleSizes:
    """What decides the transformer's shape.

    Args:
        words: rows of the text embedding; the last `text` of them stand for padding, one for each place.
        text: ids of a text, padding included.
        begin: id that stands before them, `None` where none does.
        codebook: codes of the picture.
        grid: rows and columns of codes.
        width, heads, head_width, feed_forward: of the transformer.
        attention: of each layer the name of its pattern, or `FULL`.
        patterns: what the names mean.
        gated: whether the feed-forward layers are GEGLU (else the tanh approximation of GELU).
        biased: whether queries, keys and values have biases.
        sandwich: layer norms also behind attention and feed-forward (CogView, arXiv 2105.13290, section 2.4).
        scaled: both branches times a learned vector (LayerScale, arXiv 2103.17239).
        final_norm: a layer norm of the transformer before that of the logits.
        reversible: two streams (Reformer, arXiv 2001.04451, section 3), averaged at the end.
        divided: states divided by their largest number before the logits.
        rotary: whether queries, keys and values are rotated by their places, instead of embeddings of places.
        shifted: whether half of what a branch reads comes from the places to the left and above.
        epsilon: of the layer norms.
    """

    words: int
    text: int
    begin: int | None
    codebook: int
    grid: tuple[int, int]
    width: int
    heads: int
    head_width: int
    feed_forward: int
    attention: tuple[str, ...]
    patterns: tuple[PatternSpec, ...] = ()
    gated: bool = False
    biased: bool = False
    sandwich: bool = False
    scaled: bool = False
    final_norm: bool = False
    reversible: bool = False
    divided: bool = False
    rotary: bool = False
    shifted: bool = False
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        counts = (self.words, self.text, self.codebook, *self.grid, self.width, self.heads, self.feed_forward)
        if min(*counts, len(self.attention)) < 1 or self.words <= self.text:
            raise ValueError(f"the sizes {counts} of {len(self.attention)} layers")
        if self.head_width < 8 or self.head_width % 8:
            what = f"attention heads of {self.head_width} are not served, the cache's operator wants multiples of 8"
            raise VlrtError(what, "check the number of heads")
        if self.shifted and self.width % 4:
            raise ValueError(f"a width of {self.width}, whose quarters are shifted")
        if not set(self.attention) <= {FULL, *(pattern.name for pattern in self.patterns)}:
            raise ValueError(f"the attentions {sorted(set(self.attention))}")

    @property
    def layers(self) -> int:
        return len(self.attention)

    @property
    def positions(self) -> int:
        """Of the text, its beginning included."""
        return self.text + (self.begin is not None)

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def branches(self) -> int:
        """Attention and feed-forward of every layer."""
        return 2 * self.layers


class DalleText(nn.Module):
    """Ids of padded texts [N, L] to the states [N, T, C] that the transformer begins with."""

    def __init__(self, sizes: DalleSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.words = embedding(sizes.words, sizes.width)
        self.places = None if sizes.rotary else embedding(sizes.positions, sizes.width)

    def forward(self, ids: Tensor) -> Tensor:
        """Id 0 is padding, whatever else it may mean: each place has a padding word of its own."""
        sizes = self.sizes
        padding = torch.arange(sizes.words - sizes.text, sizes.words)
        ids = torch.where(ids == 0, padding, ids)
        if sizes.begin is not None:
            ids = F.pad(ids, (1, 0), value=sizes.begin)
        words = cast(Tensor, self.words(ids))
        return words if self.places is None else words + self.places.weight


class _Attention(nn.Module):
    def __init__(self, sizes: DalleSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        inner = sizes.heads * sizes.head_width
        self.queries_keys_values = Dense(sizes.width, 3 * inner, sizes.biased)
        self.project = Dense(inner, sizes.width)

    def forward(
        self, x: Tensor, past: KeysValues, places: Places, turn: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, KeysValues]:
        joined = self.queries_keys_values(x)
        if turn is not None:
            joined = _turned(joined, 3 * self.heads, turn)
        query, key, value = joined.chunk(3, -1)
        mixed, present = cached_attention(query, key, value, past, places, self.heads)
        return self.project(mixed), present


class _FeedForward(nn.Module):
    def __init__(self, sizes: DalleSizes) -> None:
        super().__init__()
        self.gated = sizes.gated
        self.widen = Dense(sizes.width, sizes.feed_forward * (2 if sizes.gated else 1))
        self.narrow = Dense(sizes.feed_forward, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.widen(x)
        if self.gated:
            inner, gates = inner.chunk(2, -1)
            return cast(Tensor, self.narrow(inner * F.gelu(gates)))
        return cast(Tensor, self.narrow(F.gelu(inner, approximate="tanh")))


class _Branch(nn.Module):
    """What stands around attention or feed-forward: a norm before it, and perhaps a norm and a scale behind it."""

    def __init__(self, sizes: DalleSizes, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.inner = inner
        self.norm_behind = nn.LayerNorm(sizes.width, sizes.epsilon) if sizes.sandwich else None
        self.scale = nn.Parameter(torch.full((sizes.width,), 0.1)) if sizes.scaled else None

    def behind(self, y: Tensor) -> Tensor:
        if self.norm_behind is not None:
            y = self.norm_behind(y)
        return y if self.scale is None else y * self.scale


@dataclass(frozen=True)
class DalleState:
    """What a call reads besides tokens: caches by layer, and of each branch what stands above and to the left."""

    past: Sequence[KeysValues]
    places: Mapping[str, Places]
    earlier: Sequence[Tensor] = ()


class Dalle(nn.Module):
    """Codes of a picture to the logits of the next code, behind a text that an image of the loop brings as a prefix."""

    def __init__(self, sizes: DalleSizes) -> None:
        super().__init__()
        self.sizes = sizes
        rows, columns = sizes.grid
        self.codes = embedding(sizes.codebook, sizes.width)
        self.rows = None if sizes.rotary else embedding(rows, sizes.width)
        self.columns = None if sizes.rotary else embedding(columns, sizes.width)
        self.attentions = nn.ModuleList(_Branch(sizes, _Attention(sizes)) for _ in sizes.attention)
        self.feed_forwards = nn.ModuleList(_Branch(sizes, _FeedForward(sizes)) for _ in sizes.attention)
        self.final_norm = nn.LayerNorm(sizes.width, sizes.epsilon) if sizes.final_norm else None
        self.norm = nn.LayerNorm(sizes.width, sizes.epsilon)
        self.logits = Dense(sizes.width, sizes.codebook)
        if sizes.rotary:
            angles = rotary_angles(sizes)
            self.cosines = nn.Parameter(angles.cos(), requires_grad=False)
            self.sines = nn.Parameter(angles.sin(), requires_grad=False)

    def embed(self, prefix: Tensor, token: Tensor, position: Tensor) -> Tensor:
        """First states [R, W, C] of tokens at their positions, the text's of B images [B, T, C] being given."""
        words = self.codes(token)
        if self.rows is not None and self.columns is not None:
            cell = (position - self.sizes.positions).clamp(min=0)
            words = words + self.rows(cell // self.sizes.grid[1]) + self.columns(cell % self.sizes.grid[1])
        return place_prefix(words, prefix, position)

    def forward(
        self, x: Tensor, position: Tensor, new_length: Tensor, state: DalleState
    ) -> tuple[Tensor, list[KeysValues], list[Tensor]]:
        """One call over R rows of W tokens.

        Args:
            x: first states, [R, W, C].
            position: of each token, [R, W].
            new_length: tokens of each row in this call, [R] int32.
            state: of the rows.

        Returns:
            logits [R, codebook] of what follows each row's last token, the extended caches, and of each branch what
            the cells below and to the right of the last token will read, [R, C / 2].
        """
        turn = (self.cosines[position], self.sines[position]) if self.sizes.rotary else None
        present: list[KeysValues] = []
        read: list[Tensor] = []
        streams = (x, x)
        for number, name in enumerate(self.sizes.attention):
            branch = cast(_Branch, self.attentions[number])
            y = self._read(branch.norm(streams[1]), position, new_length, state, read)
            y, extended = branch.inner(y, state.past[number], state.places[name], turn)
            present.append(extended)
            streams = self._add(streams, branch.behind(y))
            branch = cast(_Branch, self.feed_forwards[number])
            y = self._read(branch.norm(streams[1]), position, new_length, state, read)
            streams = self._add(streams, branch.behind(branch.inner(y)))
        out = (streams[0] + streams[1]) / 2 if self.sizes.reversible else streams[0]
        return self._logits(last_tokens(out, new_length)), present, read

    def _add(self, streams: tuple[Tensor, Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
        """The other stream takes what one gave; where there is one only, it is both."""
        if self.sizes.reversible:
            return streams[1], streams[0] + y
        return streams[0] + y, streams[0] + y

    def _logits(self, x: Tensor) -> Tensor:
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.sizes.divided:
            x = x / x.amax(-1, keepdim=True)
        return cast(Tensor, self.logits(self.norm(x)))

    def _read(self, x: Tensor, position: Tensor, new_length: Tensor, state: DalleState, read: list[Tensor]) -> Tensor:
        """What a branch reads: its input, of which the first half comes from earlier places where tokens are shifted.

        A text's comes from the word before; a cell's first quarter from the cell above, its second from the left.
        """
        if not self.sizes.shifted:
            return x
        half = x[..., : x.shape[-1] // 2]
        earlier = state.earlier[len(read)]
        read.append(last_tokens(half, new_length))
        before = F.pad(half, (0, 0, 1, 0))[:, :-1]
        moved = torch.where((position < self.sizes.positions)[..., None], before, earlier[:, None])
        return torch.cat([moved, x[..., x.shape[-1] // 2 :]], -1)


def rotary_angles(sizes: DalleSizes) -> Tensor:
    """The angle by which each number of a head is turned at each position, [T + cells, D].

    A third of the numbers turns with the place in the text (all cells stand at 8192), two thirds with a cell's row and
    column between −1 and 1 (all words stand at −10); what is left does not turn.

    Source: reproduces lucidrains/DALLE-pytorch 1.6 and rotary-embedding-torch 0.1.
    """
    pairs = sizes.head_width // 3 // 2
    turning = sizes.head_width // 3
    language = 10000.0 ** -(torch.arange(0, turning, 2)[:pairs].float() / turning)
    pixel = torch.linspace(1.0, 5.0, pairs) * torch.pi
    words, (rows, columns) = sizes.positions, sizes.grid
    place = torch.cat([torch.arange(words).float(), torch.full((sizes.cells,), 8192.0)])
    aside = torch.full((words,), -10.0)
    row = torch.cat([aside, torch.linspace(-1, 1, rows).repeat_interleave(columns)])
    column = torch.cat([aside, torch.linspace(-1, 1, columns).repeat(rows)])
    turned = [at[:, None] * speed for at, speed in ((place, language), (row, pixel), (column, pixel))]
    angles = torch.cat(turned, 1).repeat_interleave(2, 1)
    return F.pad(angles, (0, sizes.head_width - angles.shape[1]))


def _turned(joined: Tensor, heads: int, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates neighbouring numbers of every head, [R, W, H·D], by angles [R, W, D]."""
    split = torch.unflatten(joined, -1, (heads, -1))
    pairs = torch.unflatten(split, -1, (-1, 2))
    swapped = torch.stack([-pairs[..., 1], pairs[..., 0]], -1).flatten(-2)
    cosines, sines = (part[:, :, None] for part in turn)
    return (split * cosines + swapped * sines).flatten(-2)
