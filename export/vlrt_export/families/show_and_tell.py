"""Show and Tell (Vinyals et al., arXiv 1411.4555): the image is the LSTM's first input, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from vlrt.errors import UsageError
from vlrt_export.caption_quality import quality_checks
from vlrt_export.captioner import Captioner, credited
from vlrt_export.captioner_checks import captioner_checks
from vlrt_export.captioner_graphs import (
    bundle_files,
    decode_spec,
    encoder_graph,
    memory_graph,
    plain_step_graph,
    text_spec,
)
from vlrt_export.captioner_layout import load_show_and_tell, open_captioner_folder
from vlrt_export.captioner_random import random_show_and_tell
from vlrt_export.graph import Plan
from vlrt_export.modules.show_and_tell import ShowAndTell
from vlrt_export.request import Request

_SEARCH = {"rule": "classic", "num_beams": 20, "length_penalty": 0.0}
"""The paper's: sums of log-probabilities, twenty beams (section 4.1)."""


def build(request: Request) -> Plan:
    """Plans the bundle from our layout or from random weights; option `encoder` (random weights only).

    Raises:
        VlrtError: the checkpoint is not in our layout, or something in it is missing or damaged.
    """
    captioner = _load(request)
    decoder = captioner.decoder
    if not isinstance(decoder, ShowAndTell):
        raise TypeError(f"`{type(decoder).__name__}` is not Show and Tell")
    tolerance = request.tolerance("graph", 1e-4)
    defaults = {"max_new_tokens": captioner.max_new_tokens} | _SEARCH
    return Plan(
        name=request.name,
        family="show-and-tell",
        tasks=("caption",),
        graphs=[
            encoder_graph(captioner, tolerance),
            memory_graph(captioner, decoder, tolerance),
            plain_step_graph(decoder, tolerance),
        ],
        source=credited(captioner.source, request),
        image=captioner.image,
        text=text_spec(captioner),
        decode=replace(decode_spec(captioner), defaults=defaults),
        files=bundle_files(captioner),
        card=captioner.card,
        checks=[
            *captioner_checks(captioner, request.tolerance("score", 1e-3)),
            *quality_checks(captioner, request.option("data")),
        ],
    )


def _load(request: Request) -> Captioner:
    if request.random:
        return random_show_and_tell(request.option("encoder", "efficientnet-lite2"), request.seed)
    if request.option("encoder"):
        raise UsageError("`--encoder` goes with `--random`: a checkpoint brings its own", "leave it out")
    return load_show_and_tell(open_captioner_folder(request.checkpoint()))
