"""DALL-E's rungs of the parity ladder: whole pictures that the bundle draws, code by code against plain torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines import Sessions
from vlrt.manifest import Measurement
from vlrt_export.dalle_graphs import IDS
from vlrt_export.dalle_model import DalleModel
from vlrt_export.dalle_reference import plain_logits
from vlrt_export.graph import Check

GUIDANCE = 3.0
_MOST = 160
"""Codes of a picture that are drawn: five rows of the largest grid, and minutes less than all of it."""

AMBIGUOUS = 1e-3
"""Where two codes' logits are closer than this, float error may choose either."""


def reference_checks(model: DalleModel) -> Sequence[Check]:
    """The rungs: codes of two pictures, plain and guided; each code given those before it."""

    def codes(folder: Path) -> Iterator[Measurement]:
        for scale in (1.0, GUIDANCE):
            yield _measure(model, Bundle.open(folder), scale)

    return (codes,)


def sample_ids(model: DalleModel) -> Tensor:
    """Ids of two texts, one of them mostly padding, and of none, [3, L]."""
    sizes, generator = model.sizes, torch.Generator().manual_seed(1)
    ids = torch.randint(1, max(2, sizes.words - sizes.text), (3, sizes.text), generator=generator)
    ids[1, max(1, sizes.text // 3) :] = 0
    ids[2] = 0
    return ids


def draw(bundle: Bundle, ids: Tensor, options: DecodeOptions) -> list[list[tuple[int, ...]]]:
    """Codes that the bundle's own loop draws for each text but the last, which is the unconditional one."""
    spec, sessions = bundle.manifest.decode, Sessions(bundle)
    if spec is None:
        raise ValueError(f"`{bundle.name}` decodes nothing")
    found = sessions.run_chain(spec.chain, {IDS: ids.numpy()})
    asked = {name: array[:-1] for name, array in found.items()}
    nothing = {name: array[-1:].repeat(len(ids) - 1, 0) for name, array in found.items()}
    drawn = generate(StepModel.open(spec, sessions.get), asked, options, unconditional=nothing)
    return [[hypothesis.tokens for hypothesis in image] for image in drawn]


def _measure(model: DalleModel, bundle: Bundle, scale: float) -> Measurement:
    ids = sample_ids(model)
    steps = min(model.sizes.cells, _MOST)
    drawn = draw(bundle, ids, DecodeOptions(max_new_tokens=steps, guidance_scale=scale))
    codes = torch.tensor([image[0] for image in drawn])
    wrong = ties = 0
    for text, row in zip(ids[:-1], codes):
        logits = guided_logits(model, text, ids[-1], row[:-1], scale)
        behind = logits.amax(-1) - logits.gather(-1, row[:, None])[:, 0]
        wrong += int((behind > AMBIGUOUS).sum())
        ties += int(((behind > 0) & (behind <= AMBIGUOUS)).sum())
    note = f"{ties} ties" if ties else ""
    metric = f"codes of {codes.numel()} that differ, guidance {scale:g}"
    reference = "full attention with masks, in plain torch"
    return Measurement("codes", metric, wrong, 0, reference, torch.__version__, note)


def guided_logits(model: DalleModel, text: Tensor, nothing: Tensor, codes: Tensor, scale: float) -> Tensor:
    """Logits [n + 1, codebook] behind each of a picture's first n codes."""
    with torch.no_grad():
        both = plain_logits(model.text, model.decoder, torch.stack([text, nothing]), codes.expand(2, -1))
    return both[1] + scale * (both[0] - both[1]) if scale > 1 else both[0]
