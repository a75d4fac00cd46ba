"""What DALL·E mini's bundle is held to: min-dalle's computation in plain functions, and its tokenizer's rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines import Sessions
from vlrt.manifest import DecodeSpec, Measurement
from vlrt.text import TextCodec
from vlrt_export.dalle_mini_checkpoint import PAD, DalleMini
from vlrt_export.graph import Check
from vlrt_export.modules.attention_kv import join_heads, split_heads

PROMPTS = ("an armchair in the shape of an avocado", "a Red  fox, 2 owls & a café!")
_VERSION = "kuprel/min-dalle 0.4.11, in plain torch"
_STEPS = 24
_GUIDANCE = 4.0
AMBIGUOUS = 1e-3
"""Where two codes' guided logits are closer than this, float error may choose either."""


def plain_states(weights: Mapping[str, Tensor], ids: Tensor, heads: int) -> Tensor:
    """The encoder's states [N, L, C] of ids [N, L]."""
    x = _embedded(weights, ids)
    unseen = (ids == PAD)[:, None, None, :]
    for layer in _layers(weights):
        normal = _norm(weights, f"{layer}.pre_self_attn_layer_norm", x)
        mixed = _attend(weights, f"{layer}.self_attn", normal, normal, heads, unseen)
        x = x + _norm(weights, f"{layer}.self_attn_layer_norm", mixed)
        x = x + _glu(weights, layer, x)
    return _norm(weights, "final_ln", x)


def plain_logits(weights: Mapping[str, Tensor], codes: Tensor, states: Tensor, ids: Tensor, heads: int) -> Tensor:
    """The decoder's logits [N, W, V] after each of codes [N, W], by full attention over all of them.

    Args:
        states, ids: the encoder's, of the same rows.
    """
    x = _embedded(weights, codes)
    ahead = torch.ones(codes.shape[1], codes.shape[1], dtype=torch.bool).triu(1)
    for layer in _layers(weights):
        normal = _norm(weights, f"{layer}.pre_self_attn_layer_norm", x)
        mixed = _attend(weights, f"{layer}.self_attn", normal, normal, heads, ahead)
        x = x + _norm(weights, f"{layer}.self_attn_layer_norm", mixed)
        normal = _norm(weights, f"{layer}.pre_encoder_attn_layer_norm", x)
        read = _attend(weights, f"{layer}.encoder_attn", normal, states, heads, (ids == PAD)[:, None, None, :])
        x = x + _norm(weights, f"{layer}.encoder_attn_layer_norm", read)
        x = x + _glu(weights, layer, x)
    return F.linear(_norm(weights, "final_ln", x), weights["lm_head.weight"])


def plain_ids(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], text: str) -> list[int]:
    """Ids between start and end, pair by pair, of text without emoji."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    found = [vocabulary["<s>"]]
    for word in text.lower().encode("ascii", errors="ignore").decode().split(" "):
        pieces = ["Ġ", *word] if word else []
        while len(pieces) > 1:
            place = min(range(len(pieces) - 1), key=lambda i: ranks.get((pieces[i], pieces[i + 1]), len(ranks)))
            if (pieces[place], pieces[place + 1]) not in ranks:
                break
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        found += [vocabulary.get(piece, vocabulary["<unk>"]) for piece in pieces]
    return [*found, vocabulary["</s>"]]


def reference_checks(model: DalleMini, tolerance: Callable[[str, float], float]) -> Sequence[Check]:
    """The rungs: the encoder's states, then guided greedy codes."""
    weights = model.weights()
    heads = model.encoder.sizes.heads

    def text_states(folder: Path) -> Iterator[Measurement]:
        bundle = Bundle.open(folder)
        ids, found = _conditions(bundle)
        with torch.no_grad():
            states = plain_states(weights[0], torch.from_numpy(ids), heads).numpy()
        seen = (ids != PAD)[..., None]
        gap = float(np.abs((found["text_states"] - states) * seen).max())
        yield _measured("text states", "max abs error", gap, tolerance("states", 1e-3))

    def guided_codes(folder: Path) -> Iterator[Measurement]:
        bundle = Bundle.open(folder)
        codes, (wrong, ties) = draw_greedily(bundle), (0, 0)
        ids, found = _conditions(bundle)
        states, start = torch.from_numpy(found["text_states"]), _decoder(bundle).start_ids
        for image, drawn in enumerate(codes):
            pair = [image, len(ids) - 1]
            said = torch.tensor([[*start, *drawn[:-1]]] * 2)
            with torch.no_grad():
                logits = plain_logits(weights[1], said, states[pair], torch.from_numpy(ids[pair]), heads)
            guided = logits[1] + _GUIDANCE * (logits[0] - logits[1])
            behind = guided.amax(1) - guided[torch.arange(len(drawn)), torch.tensor(drawn)]
            wrong += int((behind > AMBIGUOUS).sum())
            ties += int(((behind > 0) & (behind <= AMBIGUOUS)).sum())
        note = f"{ties} ties" if ties else ""
        metric = f"codes of {sum(map(len, codes))} that differ, guidance {_GUIDANCE:g}"
        yield _measured("guided codes", metric, wrong, 0, note)

    return (text_states, guided_codes)


def draw_greedily(bundle: Bundle, steps: int = _STEPS) -> list[list[int]]:
    """The first likeliest codes of each of `PROMPTS`, guided, by the bundle's own loop."""
    sessions, spec = Sessions(bundle), _decoder(bundle)
    _, found = _conditions(bundle)
    options = DecodeOptions(max_new_tokens=steps, guidance_scale=_GUIDANCE)
    count = len(PROMPTS)
    asked = {name: value[:count] for name, value in found.items()}
    nothing = {name: value[count:].repeat(count, 0) for name, value in found.items()}
    drawn = generate(StepModel.open(spec, sessions.get), asked, options, unconditional=nothing)
    return [[int(code) for code in hypotheses[0].tokens] for hypotheses in drawn]


def _decoder(bundle: Bundle) -> DecodeSpec:
    if bundle.manifest.decode is None:
        raise ValueError(f"`{bundle.name}` decodes nothing")
    return bundle.manifest.decode


def _conditions(bundle: Bundle) -> tuple[Any, dict[str, Any]]:
    """Ids of the prompts and of none, and what the bundle's chain makes of them."""
    codec, spec = TextCodec.open(bundle), _decoder(bundle)
    ids = codec.pad([codec.prompt_row(text) for text in (*PROMPTS, "")])
    return ids, Sessions(bundle).run_chain(spec.chain, {codec.spec.input: ids})


def _measured(stage: str, metric: str, value: float, limit: float, note: str = "") -> Measurement:
    return Measurement(stage, metric, value, limit, _VERSION, torch.__version__, note)


def _layers(weights: Mapping[str, Tensor]) -> Iterator[str]:
    number = 0
    while f"layers.{number}.glu.fc0.weight" in weights:
        yield f"layers.{number}"
        number += 1


def _norm(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def _embedded(weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    places = weights["embed_positions.weight"][: ids.shape[1]]
    return _norm(weights, "layernorm_embedding", weights["embed_tokens.weight"][ids] + places)


def _glu(weights: Mapping[str, Tensor], layer: str, x: Tensor) -> Tensor:
    x = _norm(weights, f"{layer}.glu.ln0", x)
    inner = F.gelu(F.linear(x, weights[f"{layer}.glu.fc0.weight"])) * F.linear(x, weights[f"{layer}.glu.fc1.weight"])
    return F.linear(_norm(weights, f"{layer}.glu.ln1", inner), weights[f"{layer}.glu.fc2.weight"])


def _attend(weights: Mapping[str, Tensor], name: str, x: Tensor, memory: Tensor, heads: int, unseen: Tensor) -> Tensor:
    query, key, value = (
        split_heads(F.linear(source, weights[f"{name}.{part}_proj.weight"]), heads)
        for part, source in (("q", x), ("k", memory), ("v", memory))
    )
    scores = (query / query.shape[-1] ** 0.5) @ key.transpose(2, 3)
    mixed = scores.masked_fill(unseen, -1e12).softmax(-1) @ value
    return F.linear(join_heads(mixed), weights[f"{name}.out_proj.weight"])
