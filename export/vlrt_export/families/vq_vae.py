"""VQ-VAE (van den Oord et al., arXiv 1711.00937): a small codec for pictures of any size."""

from __future__ import annotations

from vlrt_export.codec_plan import codec_plan
from vlrt_export.codec_reader import need_kind, open_image_codec
from vlrt_export.graph import Plan
from vlrt_export.request import Request
from vlrt_export.vq_vae_checkpoint import random_vq_vae

_CARD = (
    "Turns photographs into one of its codes for every 4x4 pixels, and codes into photographs, clear if soft. It has "
    "seen small pictures of everyday things; fine print and faces at a distance are lost."
)


def build(request: Request) -> Plan:
    """Plans the bundle of a VQ-VAE checkpoint, or of random weights in the option `sizes`.

    Raises:
        VlrtError: the checkpoint is another model's, or damaged.
    """
    if request.random:
        return codec_plan(request, random_vq_vae(request.option("sizes", {}), request.seed), _CARD)
    source = request.checkpoint()
    return codec_plan(request, need_kind(open_image_codec(source), "vq-vae", source), _CARD)
