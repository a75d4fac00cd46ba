"""Soft and hard attention over annotation vectors; rows ride on the query axis of un-expanded images."""

from __future__ import annotations

import torch
from torch import Tensor

SOFT, HARD, HARD_SAMPLED = "soft", "hard", "hard-sampled"
MODES = (SOFT, HARD, HARD_SAMPLED)


def attention_weights(energies: Tensor, mode: str, uniforms: Tensor | None = None) -> Tensor:
    """Weights over the regions from their energies.

    Args:
        energies: [..., S].
        mode: `soft` gives the softmax; `hard` puts everything on the likeliest region; `hard-sampled` on one drawn
            from the softmax by inversion.
        uniforms: [..., 1] in [0, 1), for `hard-sampled`.

    Returns:
        weights [..., S] that sum to one.

    Raises:
        ValueError: `hard-sampled` without uniforms, or an unknown mode.

    Source: Show, Attend and Tell (arXiv 1502.03044), equations 5, 6 and 13 (soft), 8 and 9 (hard).
    """
    if mode == HARD:
        return _one_hot(energies.argmax(-1, keepdim=True), energies)
    weights = energies.softmax(-1)
    if mode == SOFT:
        return weights
    if mode != HARD_SAMPLED or uniforms is None:
        raise ValueError(f"attention `{mode}` is not one of {', '.join(MODES)}, or lacks its uniforms")
    # Without the last bin: its cumulative sum may round below one, and the last region must take the rest.
    passed = (weights.cumsum(-1)[..., :-1] <= uniforms).sum(-1, keepdim=True)
    return _one_hot(passed, energies)


def _one_hot(index: Tensor, like: Tensor) -> Tensor:
    return (torch.arange(like.shape[-1], device=like.device) == index).to(like.dtype)


def per_image(rows: Tensor, memory: Tensor) -> Tensor:
    """Folds rows [B*k, D], where an image's k rows are neighbours, to [B, k, D] for a memory [B, ...]."""
    return rows.reshape(memory.shape[0], -1, rows.shape[-1])
