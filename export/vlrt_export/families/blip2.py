"""BLIP-2 (Li et al., arXiv 2301.12597): captions and answers by OPT or Flan-T5, and image-text matching."""

from __future__ import annotations

from vlrt_export.blip2_plan import plan
from vlrt_export.graph import Plan
from vlrt_export.request import Request


def build(request: Request) -> Plan:
    """Plans the bundle of a BLIP-2 checkpoint in transformers' layout, or of random weights.

    Options: `config` and `kind` (random weights only: a ``config.json``, and `generation` or `retrieval`), `tokenizer`.

    Raises:
        VlrtError: the checkpoint is not BLIP-2, is damaged, or has no tokenizer.
    """
    return plan(request, "blip2", instructed=False)
