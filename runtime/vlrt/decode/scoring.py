"""How likely given continuations are, without searching: what ranking a list of answers needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vlrt.decode.binding import BoundLoop, StepModel
from vlrt.decode.buffers import Array, StepBuffers
from vlrt.decode.options import DecodeOptions
from vlrt.errors import UsageError

_ROWS = 32
"""Continuations that share a forward pass."""


def score_continuations(
    step_model: StepModel, initial: Mapping[str, Array], prompt: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[float]:
    """Log-probabilities of continuations of one image's prompt: sums over their tokens, natural logarithm.

    Args:
        step_model: the decoder.
        initial: outputs of the image chain by name, for one image [1, …].
        prompt: ids that stand before each continuation.
        continuations: ids, at least one each, the end id where it should count.

    Raises:
        UsageError: an empty continuation, or one that with the prompt exceeds the decoder's longest sequence.
    """
    values = step_model.initial_values(initial)
    sequences = [[*prompt, *continuation] for continuation in continuations]
    if not prompt or not all(continuations):
        raise UsageError("there is nothing to score", "give a prompt and continuations of at least one token")
    longest, most = max(map(len, sequences)), step_model.spec.max_length
    if longest > most:
        raise UsageError(f"prompt and answer have {longest} tokens, this decoder has room for {most}")
    scores: list[float] = []
    for start in range(0, len(sequences), _ROWS):
        batch = sequences[start : start + _ROWS]
        options = DecodeOptions(num_beams=len(batch), max_new_tokens=max(map(len, batch)))
        with step_model.loop(values, [prompt], options) as bound:
            scores += _score(bound, values, batch, len(prompt))
    return scores


def _score(
    bound: BoundLoop, values: Mapping[str, Array], sequences: Sequence[Sequence[int]], known: int
) -> list[float]:
    buffers = bound.loop.buffers(len(sequences))
    for name, memory in buffers.memory.items():
        memory[:] = values[name]
    for name, state in buffers.states.items():
        state[:] = values[name]
    for noise in buffers.noise.values():
        noise[:] = 0
    totals = np.zeros(len(sequences))
    for place in range(max(map(len, sequences)) - 1):
        _fill(buffers, place, [row[min(place, len(row) - 1)] for row in sequences])
        bound(buffers)
        for name, state in buffers.states.items():
            state[:] = buffers.next_states[name]
        if place + 1 >= known:
            totals += _log_probabilities(buffers.logits, [row[place + 1 : place + 2] for row in sequences])
    return [float(total) for total in totals]


def _fill(buffers: StepBuffers, place: int, tokens: Sequence[int]) -> None:
    buffers.tokens[:, 0], buffers.positions[:, 0] = tokens, place
    buffers.past_lengths[:], buffers.new_lengths[:], buffers.last_positions[:] = place, 1, place
    buffers.total_length[:] = place + 1
    buffers.sources[:] = np.arange(buffers.rows)


def _log_probabilities(logits: Array, chosen: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Of each row's next token; 0 for rows that have ended."""
    rows = logits.astype(np.float64)
    rows -= rows.max(-1, keepdims=True)
    normalisers = np.log(np.exp(rows).sum(-1))
    return np.array([rows[i, ids[0]] - normalisers[i] if ids else 0.0 for i, ids in enumerate(chosen)])
