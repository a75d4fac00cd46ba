"""DALL-E's transformer written out plainly: the whole sequence at once, full attention with masks, no cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlrt.attention_patterns import PatternSpec
from vlrt_export.modules.attention_kv import join_heads, split_heads
from vlrt_export.modules.dalle import Dalle, DalleSizes, DalleText


def plain_logits(text: DalleText, dalle: Dalle, ids: Tensor, codes: Tensor) -> Tensor:
    """Logits of the next code behind a text and behind each of the first codes of a picture.

    Args:
        text, dalle: whose weights are used, not their code.
        ids: of padded texts, [N, L].
        codes: the first n codes of each picture, [N, n].

    Returns:
        [N, n + 1, codebook].
    """
    sizes, weights = dalle.sizes, dict(dalle.state_dict())
    words = dict(text.state_dict())
    x = torch.cat([_text_states(sizes, words, ids), _code_states(sizes, weights, codes)], 1)
    first = second = x
    for layer, name in enumerate(sizes.attention):
        for branch in ("attentions", "feed_forwards"):
            here = f"{branch}.{layer}."
            y = _shifted(sizes, _norm(sizes, weights, f"{here}norm", second))
            if branch == "attentions":
                y = _attention(sizes, weights, f"{here}inner.", y, _mask(sizes, name, x.shape[1]))
            else:
                y = _feed_forward(sizes, weights, f"{here}inner.", y)
            if sizes.sandwich:
                y = _norm(sizes, weights, f"{here}norm_behind", y)
            if sizes.scaled:
                y = y * weights[f"{here}scale"]
            first, second = (second, first + y) if sizes.reversible else (first + y, first + y)
    out = (first + second) / 2
    out = _norm(sizes, weights, "final_norm", out) if sizes.final_norm else out
    out = out / out.amax(-1, keepdim=True) if sizes.divided else out
    out = _norm(sizes, weights, "norm", out[:, sizes.positions - 1 :])
    logits = torch.addmm(weights["logits.bias"], out.flatten(0, 1), weights["logits.weight"])
    return logits.reshape(len(ids), -1, sizes.codebook)


def _text_states(sizes: DalleSizes, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    rows = []
    for row in ids.tolist():
        padded = [token or sizes.words - sizes.text + place for place, token in enumerate(row)]
        rows.append(padded if sizes.begin is None else [sizes.begin, *padded])
    states = weights["words.weight"][torch.tensor(rows)]
    return states if sizes.rotary else states + weights["places.weight"]


def _code_states(sizes: DalleSizes, weights: dict[str, Tensor], codes: Tensor) -> Tensor:
    states = weights["codes.weight"][codes]
    if sizes.rotary:
        return states
    table = weights["rows.weight"][:, None] + weights["columns.weight"][None]
    return states + table.flatten(0, 1)[: codes.shape[1]]


def _norm(sizes: DalleSizes, weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], sizes.epsilon)


def _mask(sizes: DalleSizes, name: str, length: int) -> Tensor:
    """What each position sees, [S, S]."""
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    for pattern in sizes.patterns:
        if pattern.name == name:
            seen[pattern.text :, pattern.text :] = _cells(pattern, length - pattern.text)
    return seen


def _cells(pattern: PatternSpec, count: int) -> Tensor:
    seen = torch.eye(max(count, 0), dtype=torch.bool)
    for cell, earlier in enumerate(pattern.visible()[: max(count, 0)]):
        seen[cell, list(earlier)] = True
    return seen


def _attention(sizes: DalleSizes, weights: dict[str, Tensor], here: str, x: Tensor, seen: Tensor) -> Tensor:
    joined = x @ weights[f"{here}queries_keys_values.weight"]
    if sizes.biased:
        joined = joined + weights[f"{here}queries_keys_values.bias"]
    q, k, v = (split_heads(part, sizes.heads) for part in joined.chunk(3, -1))
    if sizes.rotary:
        q, k, v = (_turned(part, weights["cosines"], weights["sines"]) for part in (q, k, v))
    scores = (q @ k.transpose(2, 3)) * sizes.head_width**-0.5
    mixed = join_heads(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
    return torch.matmul(mixed, weights[f"{here}project.weight"]) + weights[f"{here}project.bias"]


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    length = x.shape[2]
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = cosines[:length, ::2], sines[:length, ::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


def _feed_forward(sizes: DalleSizes, weights: dict[str, Tensor], here: str, x: Tensor) -> Tensor:
    inner = x @ weights[f"{here}widen.weight"] + weights[f"{here}widen.bias"]
    if sizes.gated:
        inner, gates = inner.chunk(2, -1)
        inner = inner * F.gelu(gates)
    else:
        inner = F.gelu(inner, approximate="tanh")
    return inner @ weights[f"{here}narrow.weight"] + weights[f"{here}narrow.bias"]


def _shifted(sizes: DalleSizes, x: Tensor) -> Tensor:
    if not sizes.shifted:
        return x
    text, width, columns = sizes.positions, x.shape[-1], sizes.grid[1]
    moved = x.clone()
    moved[:, 0, : width // 2] = 0
    moved[:, 1:text, : width // 2] = x[:, : text - 1, : width // 2]
    for place in range(text, x.shape[1]):
        row, column = divmod(place - text, columns)
        above = x[:, place - columns, : width // 4] if row else torch.zeros_like(x[:, 0, : width // 4])
        left = x[:, place - 1, width // 4 : width // 2] if column else torch.zeros_like(above)
        moved[:, place, : width // 2] = torch.cat([above, left], -1)
    return moved
