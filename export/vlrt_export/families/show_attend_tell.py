"""Show, Attend and Tell (Xu et al., arXiv 1502.03044), with the small dual encoder where the checkpoint has one."""

from __future__ import annotations

from vlrt.errors import UsageError
from vlrt_export.caption_quality import quality_checks
from vlrt_export.captioner import Captioner, credited
from vlrt_export.captioner_checks import captioner_checks
from vlrt_export.captioner_graphs import (
    AttentiveDecoder,
    attentive_step_graph,
    bundle_files,
    decode_spec,
    dual_encoder_graphs,
    embed_spec,
    encoder_graph,
    memory_graph,
    text_spec,
)
from vlrt_export.captioner_layout import is_captioner_folder, load_show_attend_tell, open_captioner_folder
from vlrt_export.captioner_random import random_show_attend_tell
from vlrt_export.graph import Plan
from vlrt_export.modules.attention import MODES, SOFT
from vlrt_export.modules.show_attend_tell import ShowAttendTell
from vlrt_export.modules.tutorial_decoder import TutorialDecoder
from vlrt_export.request import Request
from vlrt_export.tutorial_layout import load_tutorial, open_tutorial

_EMBEDDING_TASKS = ("match", "search", "embed", "classify")


def build(request: Request) -> Plan:
    """Plans the bundle from our layout, from the public tutorial's checkpoint, or from random weights.

    Options: `encoder` (random weights only), `attention` (`soft`, `hard`, `hard-sampled`), `tokenizer` (the
    tutorial's word map).

    Raises:
        VlrtError: the checkpoint is in neither layout, or something in it is missing or damaged.
    """
    attention = request.option("attention", SOFT)
    if attention not in MODES:
        raise UsageError(f"there is no attention `{attention}`", f"one of {', '.join(MODES)}")
    captioner = _load(request, attention)
    decoder = captioner.decoder
    if not isinstance(decoder, (ShowAttendTell, TutorialDecoder)):
        raise TypeError(f"`{type(decoder).__name__}` does not attend")
    return _plan(request, captioner, decoder)


def _load(request: Request, attention: str) -> Captioner:
    if request.random:
        return random_show_attend_tell(request.option("encoder", "efficientnet-lite2"), attention, request.seed)
    if request.option("encoder"):
        raise UsageError("`--encoder` goes with `--random`: a checkpoint brings its own", "leave it out")
    source = request.checkpoint()
    if is_captioner_folder(source):
        return load_show_attend_tell(open_captioner_folder(source), attention)
    return load_tutorial(open_tutorial(source, request.option("tokenizer")), attention)


def _plan(request: Request, captioner: Captioner, decoder: AttentiveDecoder) -> Plan:
    tolerance = request.tolerance("graph", 1e-4)
    model = captioner.dual_encoder
    graphs = [
        encoder_graph(captioner, tolerance),
        memory_graph(captioner, decoder, tolerance),
        attentive_step_graph(captioner, decoder, tolerance),
    ]
    return Plan(
        name=request.name,
        family="show-attend-tell",
        tasks=("caption", *(_EMBEDDING_TASKS if model else ())),
        graphs=graphs + (dual_encoder_graphs(captioner, model, tolerance) if model else []),
        source=credited(captioner.source, request),
        image=captioner.image,
        text=text_spec(captioner),
        decode=decode_spec(captioner),
        embed=embed_spec(model) if model else None,
        files=bundle_files(captioner),
        card=captioner.card,
        checks=[
            *captioner_checks(captioner, request.tolerance("score", 1e-3)),
            *quality_checks(captioner, request.option("data")),
        ],
    )
