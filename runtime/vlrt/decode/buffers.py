"""What a decoding loop allocates, and the buffers of one forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlrt.attention_patterns import PatternSpec
from vlrt.errors import VlrtError

Array = NDArray[Any]


@dataclass(frozen=True)
class RowTensor:
    """One row of a tensor: its name, its shape without the first axis, its dtype; of a compact cache its pattern."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    pattern: str = ""

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class LoopShape:
    """What a loop allocates, once.

    Args:
        vocabulary: logits per row.
        max_images: images decoded together; a guided image counts as two.
        max_rows: live hypotheses of all images together.
        max_steps: most new tokens of a run.
        max_width: prompt tokens that one call of the model takes; 1 for models that take one token a call. What is
            longer, where all prompts are of one length, follows token by token.
        caches: attention caches, row shape [heads, positions, head_dim]; read and written in place. One with a pattern
            holds the text and behind it what the cell of the call sees, in any order; the rest waits elsewhere.
        recurrent: states that a step reads and replaces.
        shifts: states of which each cell of its pattern's grid reads one half from the cell above and the other from
            the left, zeros where there is none.
        memory: tensors with one row per image.
        noise: float32 tensors filled with uniforms in [0, 1) before every call.
        records: step outputs kept for every word.
        on_device: whether whoever runs the steps keeps the caches that have no pattern, see `StepBuffers.sources`.
    """

    vocabulary: int
    max_images: int
    max_rows: int
    max_steps: int
    max_width: int = 1
    caches: tuple[RowTensor, ...] = ()
    recurrent: tuple[RowTensor, ...] = ()
    memory: tuple[RowTensor, ...] = ()
    noise: tuple[RowTensor, ...] = ()
    records: tuple[RowTensor, ...] = ()
    patterns: tuple[PatternSpec, ...] = ()
    shifts: tuple[RowTensor, ...] = ()
    on_device: bool = False

    @property
    def own_caches(self) -> tuple[RowTensor, ...]:
        """Caches that the loop allocates."""
        return tuple(cache for cache in self.caches if cache.pattern or not self.on_device)

    def __post_init__(self) -> None:
        names = {pattern.name for pattern in self.patterns}
        for state in (*self.caches, *self.shifts):
            if (state.pattern or state in self.shifts) and state.pattern not in names:
                raise VlrtError(f"state `{state.name}` names the pattern `{state.pattern}`, which is not there")
        for cache in self.caches:
            if len(cache.shape) != 3:
                raise VlrtError(f"cache `{cache.name}` has row shape {cache.shape}, expected three axes")
        if any(noise.dtype != "float32" for noise in self.noise):
            raise VlrtError("noise inputs must be float32")

    @property
    def row_bytes(self) -> int:
        """Bytes of everything that there is for each row."""
        patterns = {pattern.name: pattern for pattern in self.patterns}
        held = sum(tensor.row_bytes for tensor in (*self.caches, *self.noise, *self.records))
        held += sum(2 * tensor.row_bytes for tensor in self.recurrent)
        held += sum((2 + patterns[state.pattern].grid[1]) * state.row_bytes for state in self.shifts)
        for cache in self.caches:
            if cache.pattern:
                held += cache.row_bytes // cache.shape[1] * patterns[cache.pattern].waiting
        return held + 8 * self.vocabulary

    @property
    def total_bytes(self) -> int:
        """Bytes that the loop takes when every row is in use."""
        return self.max_rows * self.row_bytes + self.max_images * sum(tensor.row_bytes for tensor in self.memory)


@dataclass(frozen=True)
class StepBuffers:
    """The buffers of one forward pass over `rows` rows (R), `width` tokens (W) each, of `images` images (B).

    R = B · k; the rows of an image lie together. With guidance an image counts as two, the one that has its prompt
    before the one that has none; a step need not know. The step reads everything but `logits`, `next_states` and
    `records`, which it must fill; `caches` it extends in place at positions `past_lengths` onwards.

    Args:
        tokens: [R, W] int64.
        positions: [R, W] int64, place of each token in its sequence.
        past_lengths, new_lengths, last_positions: [R] int32: filled positions before the call, tokens of this
            call (shorter prompts stand at the left), and the sum of both less one.
        total_length: [1] int32, longest past + new.
        sources: [R] int32, the row of the call before that each row continues, its own number where there was none. The
            states in these buffers have moved already; a step that keeps states elsewhere has to follow.
        pattern_last, pattern_total: the last two for the caches of each pattern: where the last token stands in them,
            and how many of their positions are filled after the call.
        logits: [R, vocabulary] float32, of each row's last token.
    """

    rows: int
    width: int
    images: int
    tokens: Array
    positions: Array
    past_lengths: Array
    new_lengths: Array
    last_positions: Array
    total_length: Array
    sources: Array
    logits: Array
    caches: Mapping[str, Array]
    states: Mapping[str, Array]
    next_states: Mapping[str, Array]
    memory: Mapping[str, Array]
    noise: Mapping[str, Array]
    records: Mapping[str, Array]
    pattern_last: Mapping[str, Array] = field(default_factory=dict)
    pattern_total: Mapping[str, Array] = field(default_factory=dict)
