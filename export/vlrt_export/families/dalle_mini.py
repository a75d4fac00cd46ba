"""DALL·E mini and mega (Dayma et al., 2021): a text encoder, a decoder of 16 x 16 codes, and the codes' pictures."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt.manifest import DecodeSpec, ImageTokensSpec, Source, TextSpec
from vlrt_export import kv_graphs
from vlrt_export.codec_reader import open_image_codec
from vlrt_export.dalle_mini_checkpoint import (
    GRID,
    PAD,
    START,
    DalleMini,
    Files,
    load_dalle_mini,
    open_files,
    random_dalle_mini,
)
from vlrt_export.dalle_mini_reference import reference_checks
from vlrt_export.dalle_mini_tokenizer import END as END_TOKEN
from vlrt_export.dalle_mini_tokenizer import START as START_TOKEN
from vlrt_export.dalle_mini_tokenizer import open_tokenizer
from vlrt_export.graph import Graph, Plan
from vlrt_export.image_codec import ImageCodec
from vlrt_export.kv_graphs import MASK, MEMORY, STEP, Memory
from vlrt_export.request import Request
from vlrt_export.text_files import FILE, stand_in
from vlrt_export.vqgan_checkpoint import random_vqgan

ENCODER, STATES, IDS = "text_encoder", "text_states", "input_ids"
_CARD = (
    "Draws 256x256 pixels from a sentence, code by code: scenes, drawings and things of the web of 2021. Faces and "
    "hands come out wrong, text is not readable, and it shows the prejudices of its data."
)
_RANDOM = "random weights: for latency work only"
_DEFAULTS = {"do_sample": True, "top_k": 256, "guidance_scale": 16.0}
"""Of min-dalle: its ``top_k`` and ``supercondition_factor``."""


def build(request: Request) -> Plan:
    """Plans the bundle of min-dalle's files, or of random weights in the options `sizes` and `codec_sizes`.

    Options: `codec` (the detokenizer's file, or another codec of as many codes; beside the rest where not given),
    `suffix` (of the files' names, ``_mini``), `heads`.

    Raises:
        VlrtError: another model's checkpoint, a part missing or damaged, or a codec that does not fit the decoder.
    """
    if request.random:
        model = random_dalle_mini(request.option("sizes", {}), request.seed)
        vocabulary = model.encoder.sizes.vocabulary
        tokenizer = stand_in(vocabulary, {0: START_TOKEN, PAD: "<pad>", 2: END_TOKEN})
        codes = model.decoder.sizes.codes
        codec = random_vqgan({"codebook": codes} | request.option("codec_sizes", {}), request.seed)
        return _plan(request, model, tokenizer, codec)
    files = open_files(request.checkpoint(), request.option("suffix", ""))
    tokenizer = open_tokenizer(files.encoder, files.suffix)
    return _plan(request, load_dalle_mini(files, request.option("heads")), tokenizer, _codec(request, files))


def _plan(request: Request, model: DalleMini, tokenizer: Tokenizer, codec: ImageCodec) -> Plan:
    _check_fit(model, codec)
    tolerance, memory = request.tolerance("graph", 1e-3), _memory(model)
    return Plan(
        name=request.name,
        family="dalle-mini",
        tasks=("generate", *codec.tasks),
        graphs=[
            _encoder_graph(model, tolerance),
            kv_graphs.memory_graph(model.decoder, memory, tolerance),
            kv_graphs.step_graph(model.decoder, memory, tolerance),
            *codec.graphs(tolerance),
        ],
        source=_source(request, model),
        text=_text_spec(model, tokenizer),
        decode=_decode_spec(model),
        codec=codec.spec(GRID),
        image_tokens=ImageTokensSpec(GRID, codec.codebook, text="encoder"),
        files={FILE: str(tokenizer.to_str()).encode()},
        card=_CARD if model.checkpoint else _RANDOM,
        checks=reference_checks(model, request.tolerance),
    )


def _codec(request: Request, files: Files) -> ImageCodec:
    given = request.option("codec") or files.detokenizer
    if given is None:
        what = f"`{files.encoder.origin}` has no detoker.pt, the codes' pictures"
        raise VlrtError(what, "put it beside encoder.pt, as min-dalle publishes it")
    return open_image_codec(given)


def _check_fit(model: DalleMini, codec: ImageCodec) -> None:
    if codec.codebook != model.decoder.sizes.codes:
        what = f"the decoder writes {model.decoder.sizes.codes} codes, the codec has {codec.codebook}"
        raise VlrtError(what, "give the codec that the decoder was trained with")
    if model.decoder.sizes.positions != GRID[0] * GRID[1]:
        what = f"the decoder has {model.decoder.sizes.positions} positions, a picture has {GRID[0] * GRID[1]} codes"
        raise VlrtError(what, "is it DALL·E mini's?")


def _memory(model: DalleMini) -> Memory:
    return Memory(STATES, model.encoder.sizes.width, 0)


def _encoder_graph(model: DalleMini, tolerance: float) -> Graph:
    cases = [{IDS: _ids(model, n, length)} for n, length in ((2, 5), (1, 3), (3, 7))]
    return Graph(
        role=ENCODER,
        module=model.encoder,
        inputs=cases[0],
        outputs=(STATES, MASK),
        dynamic={IDS: {0: "images", 1: "length"}},
        output_axes={STATES: {0: "images", 1: "length"}, MASK: {0: "images", 1: "length"}},
        cases=cases[1:],
        tolerance=tolerance,
    )


def _ids(model: DalleMini, texts: int, length: int) -> Tensor:
    """Random ids, each row but the first padded a little more than the one before."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(PAD + 1, model.encoder.sizes.vocabulary, (texts, length), generator=generator)
    for row in range(texts):
        ids[row, max(2, length - row) :] = PAD
    return ids


def _text_spec(model: DalleMini, tokenizer: Tokenizer) -> TextSpec:
    sizes = model.encoder.sizes
    start, end = (tokenizer.token_to_id(token) for token in (START_TOKEN, END_TOKEN))
    if tokenizer.get_vocab_size() > sizes.vocabulary:
        what = f"the tokenizer has {tokenizer.get_vocab_size()} ids, the encoder reads {sizes.vocabulary}"
        raise VlrtError(what, "give the vocabulary that lies beside the weights")
    return TextSpec(FILE, sizes.positions, sizes.vocabulary, PAD, start, end, input=IDS)


def _decode_spec(model: DalleMini) -> DecodeSpec:
    sizes = model.decoder.sizes
    first = min(START, sizes.codes - 1)
    return DecodeSpec(
        chain=(ENCODER, MEMORY),
        step=STEP,
        vocabulary=sizes.codes,
        start_ids=(first,),
        end_ids=(),
        pad_id=first,
        states=kv_graphs.states(model.decoder, _memory(model)),
        max_length=sizes.positions + 1,
        defaults=_DEFAULTS | {"max_new_tokens": sizes.positions},
    )


def _source(request: Request, model: DalleMini) -> Source:
    if model.checkpoint is None:
        return Source("random", f"seed {request.seed}", "none", _RANDOM)
    known = request.source == request.entry.source
    licence = request.entry.license if known and request.entry.license else "see the checkpoint's source"
    return Source(model.checkpoint.origin, model.checkpoint.revision, licence)
