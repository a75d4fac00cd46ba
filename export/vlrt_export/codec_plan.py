"""The bundle of a codec of pictures, for every family of them."""

from __future__ import annotations

from vlrt.manifest import Source
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.codec_checks import codec_checks
from vlrt_export.graph import Plan
from vlrt_export.image_codec import ImageCodec
from vlrt_export.request import Request

_RANDOM = "random weights: for latency work only"


def codec_plan(request: Request, codec: ImageCodec, card: str) -> Plan:
    """Plans the bundle of a codec that a family has opened, or made of random weights.

    Args:
        card: what the family knows of its pictures.
    """
    return Plan(
        name=request.name,
        family=request.entry.family,
        tasks=codec.tasks,
        graphs=codec.graphs(request.tolerance("graph", 1e-4)),
        source=codec_source(request, codec.checkpoint),
        codec=codec.spec(),
        card=card if codec.checkpoint else _RANDOM,
        checks=codec_checks(codec, request.tolerance),
    )


def codec_source(request: Request, checkpoint: Checkpoint | None) -> Source:
    """Where the weights come from, and their licence where the zoo knows it."""
    if checkpoint is None:
        return Source("random", f"seed {request.seed}", "none", _RANDOM)
    known = request.source == request.entry.source
    licence = request.entry.license if known and request.entry.license else "see the checkpoint's source"
    return Source(checkpoint.origin, checkpoint.revision, licence)
