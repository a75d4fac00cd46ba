"""BLIP (Li et al., arXiv 2201.12086): captions, answers to questions, and matching, from transformers' checkpoints."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from vlrt.manifest import ImageSpec, Source
from vlrt_export import blip_graphs, clip_image
from vlrt_export.blip_checkpoint import CAPTIONING, QUESTIONS, RETRIEVAL, Blip, load_blip, random_blip
from vlrt_export.blip_reference import reference_checks
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.generation import decode_defaults
from vlrt_export.graph import Plan
from vlrt_export.request import Request
from vlrt_export.text_files import FILE, find_tokenizer, stand_in, start_and_end

TASKS = {
    CAPTIONING: ("caption",),
    QUESTIONS: ("answer",),
    RETRIEVAL: ("match", "search", "embed", "classify"),
}
_CARD = (
    "Describes photographs in a sentence, answers short questions about them, or says whether a sentence fits. Counts "
    "badly, reads no text, and guesses what it cannot see; its training pictures come from the web, with its biases."
)
_RANDOM = "random weights: for latency work only"


def build(request: Request) -> Plan:
    """Plans the bundle of a BLIP checkpoint, or of random weights in the size of the zoo's entry.

    Options: `kind` (random weights only: `captioning`, `questions`, `retrieval`), `tokenizer`.

    Raises:
        VlrtError: the checkpoint is not BLIP, is damaged, or has no tokenizer.
    """
    checkpoint = None if request.random else open_checkpoint(request.checkpoint())
    if checkpoint is None:
        model = random_blip(request.options, request.option("kind", CAPTIONING), request.seed)
    else:
        model = load_blip(checkpoint)
    tokenizer = _tokenizer(request, checkpoint, model)
    pixels = _image_spec(checkpoint, model)
    return Plan(
        name=request.name,
        family="blip",
        tasks=TASKS[model.kind],
        graphs=blip_graphs.graphs(model, request.tolerance("graph", 1e-4)),
        source=_source(request, checkpoint),
        image=pixels,
        text=blip_graphs.text_spec(model, *start_and_end(tokenizer, "[CLS]", "[SEP]")),
        decode=blip_graphs.decode_spec(model, model.decoder, _defaults(checkpoint)) if model.decoder else None,
        embed=blip_graphs.embed_spec(model),
        answer=blip_graphs.answer_spec(model),
        match=blip_graphs.match_spec(model),
        files={FILE: str(tokenizer.to_str()).encode()},
        card=_RANDOM if checkpoint is None else _CARD,
        checks=reference_checks(model, checkpoint, pixels, request.tolerance),
    )


def _tokenizer(request: Request, checkpoint: Checkpoint | None, model: Blip) -> Tokenizer:
    vocabulary, given, ids = model.sizes.text.vocabulary, request.option("tokenizer"), model.ids
    if checkpoint is None and given is None:
        special = {ids.pad: "[PAD]", ids.cls: "[CLS]", ids.sep: "[SEP]", ids.bos: "[DEC]"}
        return stand_in(vocabulary, special)
    return find_tokenizer(checkpoint, given, vocabulary)


def _image_spec(checkpoint: Checkpoint | None, model: Blip) -> ImageSpec:
    size = model.sizes.vision.image_size
    processor = checkpoint.json("preprocessor_config.json") if checkpoint else {}
    return clip_image.image_spec({"size": {"height": size, "width": size}} | processor, size)


def _defaults(checkpoint: Checkpoint | None) -> dict[str, Any]:
    """The decoder is a model within the model: the library takes its options from its own part of the configuration."""
    if checkpoint is None:
        return decode_defaults({})
    return decode_defaults({**checkpoint.config.get("text_config", {}), **checkpoint.json("generation_config.json")})


def _source(request: Request, checkpoint: Checkpoint | None) -> Source:
    if checkpoint is None:
        return Source("random", f"seed {request.seed}", "none", _RANDOM)
    known = request.source == request.entry.source
    licence = request.entry.license if known and request.entry.license else "see the checkpoint's source"
    return Source(checkpoint.origin, checkpoint.revision, licence)
