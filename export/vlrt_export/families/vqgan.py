"""VQGAN (Esser et al., arXiv 2012.09841): pictures to codes by networks with attention, trained against a critic."""

from __future__ import annotations

from vlrt_export.codec_plan import codec_plan
from vlrt_export.codec_reader import need_kind, open_image_codec
from vlrt_export.graph import Plan
from vlrt_export.request import Request
from vlrt_export.vqgan_checkpoint import random_vqgan

_CARD = (
    "Turns photographs into codes for every 8x8 or 16x16 pixels, and codes into sharp photographs: what the codes do "
    "not hold, it makes up, so that small faces and text are seldom what they were."
)


def build(request: Request) -> Plan:
    """Plans the bundle of a VQGAN's checkpoint, or of random weights in the option `sizes`.

    Options: `side` (of the pictures it was trained on, in pixels, where no configuration says it).

    Raises:
        VlrtError: the checkpoint is another model's, or damaged.
    """
    if request.random:
        return codec_plan(request, random_vqgan(request.option("sizes", {}), request.seed), _CARD)
    source = request.checkpoint()
    return codec_plan(request, need_kind(open_image_codec(source, request.option("side")), "vqgan", source), _CARD)
