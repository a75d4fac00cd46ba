"""DALL-E's discrete VAE (Ramesh et al., arXiv 2102.12092, appendix A), and that of DALLE-pytorch."""

from __future__ import annotations

from vlrt_export.codec_plan import codec_plan
from vlrt_export.codec_reader import need_kind, open_image_codec
from vlrt_export.dvae_checkpoint import random_dvae
from vlrt_export.graph import Plan
from vlrt_export.request import Request

_CARD = (
    "Turns photographs into one of its codes for every few pixels, and codes into photographs. It keeps layout and "
    "colour; text, fur and faces become soft or are made up."
)


def build(request: Request) -> Plan:
    """Plans the bundle of a discrete VAE's checkpoint, or of random weights in the option `sizes`.

    Raises:
        VlrtError: the checkpoint is another model's, or damaged.
    """
    if request.random:
        return codec_plan(request, random_dvae(request.option("sizes", {}), request.seed), _CARD)
    source = request.checkpoint()
    return codec_plan(request, need_kind(open_image_codec(source), "dvae", source), _CARD)
