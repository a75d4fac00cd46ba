"""InstructBLIP (Dai et al., arXiv 2305.06500), with Flan-T5 or Vicuna: the question guides how the image is read."""

from __future__ import annotations

from vlrt_export.blip2_plan import plan
from vlrt_export.graph import Plan
from vlrt_export.request import Request


def build(request: Request) -> Plan:
    """Plans the bundle of an InstructBLIP checkpoint in transformers' layout, or of random weights.

    Options: `config` (random weights only: a ``config.json``), `tokenizer` (of the language model).

    Raises:
        VlrtError: the checkpoint is not InstructBLIP, has another language model, is damaged, or lacks a tokenizer.
    """
    return plan(request, "instructblip", instructed=True)
