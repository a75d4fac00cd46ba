"""Image encoder and text decoder joined by cross-attention (transformers' `VisionEncoderDecoderModel`)."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from vlrt.manifest import DecodeSpec, Source, TextSpec
from vlrt_export import kv_graphs
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.generation import decode_defaults
from vlrt_export.graph import Plan
from vlrt_export.kv_graphs import MEMORY, STEP
from vlrt_export.processor_layout import image_spec
from vlrt_export.request import Request
from vlrt_export.text_files import FILE, find_tokenizer, stand_in
from vlrt_export.vision_encoder_decoder import ENCODER, VisionText, encoder_graph, load_model, random_model
from vlrt_export.vision_encoder_decoder_reference import reference_checks

_CARD = (
    "Describes photographs in a sentence. What it knows depends on what the checkpoint was trained with; its like "
    "read little text, count badly, and name what is usual rather than what is there."
)
_RANDOM = "random weights: for latency work only"


def build(request: Request) -> Plan:
    """Plans the bundle of a checkpoint, or of random weights in the shape of the zoo's entry.

    Options: `encoder`, `decoder` (random weights only: their configurations), `tokenizer`.

    Raises:
        VlrtError: the checkpoint is of another family or kind, is damaged, or has no tokenizer.
    """
    checkpoint = None if request.random else open_checkpoint(request.checkpoint())
    model = random_model(request.options, request.seed) if checkpoint is None else load_model(checkpoint)
    tolerance = request.tolerance("graph", 1e-4)
    decoder, memory = model.decoder.module, model.memory
    pixels = image_spec(checkpoint.json("preprocessor_config.json") if checkpoint else {}, model.encoder.image_size)
    return Plan(
        name=request.name,
        family="vision-encoder-decoder",
        tasks=("caption",),
        graphs=[
            encoder_graph(model.encoder, tolerance),
            kv_graphs.memory_graph(decoder, memory, tolerance),
            kv_graphs.step_graph(decoder, memory, tolerance),
        ],
        source=_source(request, checkpoint),
        image=pixels,
        text=TextSpec(FILE, model.decoder.longest, decoder.sizes.vocabulary, model.ids.pad),
        decode=_decode_spec(model, checkpoint),
        files={FILE: str(_tokenizer(request, checkpoint, model).to_str()).encode()},
        card=_RANDOM if checkpoint is None else _CARD,
        checks=reference_checks(model, checkpoint, pixels, request.tolerance),
    )


def _decode_spec(model: VisionText, checkpoint: Checkpoint | None) -> DecodeSpec:
    ids = model.ids
    return DecodeSpec(
        chain=(ENCODER, MEMORY),
        step=STEP,
        vocabulary=model.decoder.module.sizes.vocabulary,
        start_ids=(ids.start,),
        end_ids=ids.ends,
        pad_id=ids.pad,
        states=kv_graphs.states(model.decoder.module, model.memory),
        max_length=model.decoder.longest,
        defaults=_defaults(checkpoint),
    )


def _defaults(checkpoint: Checkpoint | None) -> dict[str, Any]:
    if checkpoint is None:
        return decode_defaults({})
    config = checkpoint.config
    every = ({**config.get("decoder", {})}, config, checkpoint.json("generation_config.json"))
    return decode_defaults({name: value for part in every for name, value in part.items() if value is not None})


def _tokenizer(request: Request, checkpoint: Checkpoint | None, model: VisionText) -> Tokenizer:
    vocabulary, given, ids = model.decoder.module.sizes.vocabulary, request.option("tokenizer"), model.ids
    if checkpoint is None and given is None:
        return stand_in(
            vocabulary, {ids.start: "[START]"} | {end: f"[END{end}]" for end in ids.ends if end != ids.start}
        )
    return find_tokenizer(checkpoint, given, vocabulary)


def _source(request: Request, checkpoint: Checkpoint | None) -> Source:
    if checkpoint is None:
        return Source("random", f"seed {request.seed}", "none", _RANDOM)
    known = request.source == request.entry.source
    licence = request.entry.license if known and request.entry.license else "see the checkpoint's source"
    return Source(checkpoint.origin, checkpoint.revision, licence)
