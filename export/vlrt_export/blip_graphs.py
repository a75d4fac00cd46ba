"""The graphs of BLIP and the manifest sections that describe them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlrt.manifest import AnswerSpec, DecodeSpec, EmbedSpec, MatchSpec, TextSpec
from vlrt_export import kv_graphs
from vlrt_export.blip_checkpoint import QUESTIONS, RETRIEVAL, Blip
from vlrt_export.graph import Graph
from vlrt_export.kv_graphs import MASK, MEMORY, STEP, Memory
from vlrt_export.modules.bert import BertDecoder, BertEncoder
from vlrt_export.modules.blip import ImageEmbedding, MatchHead, QuestionEncoder, TextEmbedding
from vlrt_export.text_files import FILE

ENCODER, QUESTION, MATCH = "image_encoder", "question_encoder", "image_text_match"
IMAGE_EMBEDDING, TEXT_ENCODER = "image_embedding", "text_encoder"
STATES, QUESTION_STATES, IDS = "image_states", "question_states", "input_ids"
_SCALE = 1 / 0.07
"""Inverse temperature that BLIP's contrastive training starts from; retrieval checkpoints do not keep theirs."""


def graphs(model: Blip, tolerance: float) -> list[Graph]:
    """All graphs of a model's kind."""
    found = [encoder_graph(model, tolerance)]
    if model.kind == QUESTIONS:
        found.append(question_graph(model, _encoder(model), tolerance))
    if model.decoder is not None:
        memory = decoder_memory(model)
        found.append(kv_graphs.memory_graph(model.decoder, memory, tolerance))
        found.append(kv_graphs.step_graph(model.decoder, memory, tolerance))
    if model.kind == RETRIEVAL:
        found += retrieval_graphs(model, tolerance)
    return found


def encoder_graph(model: Blip, tolerance: float) -> Graph:
    """Pixels [N, 3, H, W] to image states [N, S, M]."""
    side = model.sizes.vision.image_size
    cases = [{"pixels": _normal(n, 3, side, side)} for n in (2, 1)]
    return Graph(
        role=ENCODER,
        module=model.vision,
        inputs=cases[0],
        outputs=(STATES,),
        dynamic={"pixels": {0: "batch"}},
        output_axes={STATES: {0: "batch"}},
        cases=cases[1:],
        tolerance=tolerance,
    )


def question_graph(model: Blip, encoder: BertEncoder, tolerance: float) -> Graph:
    """Image states and questions to what the answer's decoder reads."""
    cases = [_sentences(model, n, n, length) for n, length in ((2, 7), (1, 3), (3, 5))]
    axes = {0: "batch", 1: "length"}
    return Graph(
        role=QUESTION,
        module=QuestionEncoder(encoder, model.ids.pad).eval(),
        inputs=cases[0],
        outputs=(QUESTION_STATES, MASK),
        dynamic={STATES: {0: "batch"}, IDS: axes},
        output_axes={QUESTION_STATES: axes, MASK: axes},
        cases=cases[1:],
        tolerance=tolerance,
    )


def retrieval_graphs(model: Blip, tolerance: float) -> list[Graph]:
    """The matching head, and both sides of the contrastive space."""
    encoder = _encoder(model)
    if model.heads is None:
        raise ValueError("a retrieval model has heads")
    pairs = [_sentences(model, n, n * k, length) for n, k, length in ((2, 3, 7), (1, 1, 3), (3, 1, 5), (1, 4, 6))]
    images = [{STATES: pair[STATES]} for pair in pairs[:3]]
    texts = [{IDS: pair[IDS]} for pair in pairs[:3]]
    ids_axes = {0: "texts", 1: "length"}
    return [
        Graph(
            role=MATCH,
            module=MatchHead(encoder, model.heads["itm_head"], model.ids.pad).eval(),
            inputs=pairs[0],
            outputs=("match_probability",),
            dynamic={STATES: {0: "batch"}, IDS: ids_axes},
            output_axes={"match_probability": {0: "texts"}},
            cases=pairs[1:],
            tolerance=tolerance,
        ),
        Graph(
            role=IMAGE_EMBEDDING,
            module=ImageEmbedding(model.heads["vision_proj"]).eval(),
            inputs=images[0],
            outputs=("image_embedding",),
            dynamic={STATES: {0: "batch"}},
            output_axes={"image_embedding": {0: "batch"}},
            cases=images[1:],
            tolerance=tolerance,
        ),
        Graph(
            role=TEXT_ENCODER,
            module=TextEmbedding(encoder, model.heads["text_proj"], model.ids.pad).eval(),
            inputs=texts[0],
            outputs=("text_embedding",),
            dynamic={IDS: ids_axes},
            output_axes={"text_embedding": {0: "texts"}},
            cases=texts[1:],
            tolerance=tolerance,
        ),
    ]


def decoder_memory(model: Blip) -> Memory:
    """What the decoder's cross-attention reads: the image, or the question that has read the image."""
    if model.kind == QUESTIONS:
        return Memory(QUESTION_STATES, model.sizes.text.width, 0)
    return Memory(STATES, model.sizes.vision.width, model.sizes.vision.length)


def decode_spec(model: Blip, decoder: BertDecoder, defaults: Mapping[str, object]) -> DecodeSpec:
    """The decode section of captions or answers."""
    middle = (QUESTION,) if model.kind == QUESTIONS else ()
    return DecodeSpec(
        chain=(ENCODER, *middle, MEMORY),
        step=STEP,
        vocabulary=model.sizes.text.vocabulary,
        start_ids=(model.ids.bos,),
        end_ids=(model.ids.sep,),
        pad_id=model.ids.pad,
        states=kv_graphs.states(decoder, decoder_memory(model)),
        max_length=model.sizes.text.positions,
        defaults=dict(defaults),
    )


def answer_spec(model: Blip) -> AnswerSpec | None:
    return AnswerSpec("encoder") if model.kind == QUESTIONS else None


def match_spec(model: Blip) -> MatchSpec | None:
    return MatchSpec((ENCODER,), MATCH) if model.kind == RETRIEVAL else None


def embed_spec(model: Blip) -> EmbedSpec | None:
    """The contrastive space of a retrieval model."""
    if model.kind != RETRIEVAL:
        return None
    return EmbedSpec((ENCODER, IMAGE_EMBEDDING), (TEXT_ENCODER,), model.sizes.shared, _SCALE)


def text_spec(model: Blip, start: int, end: int) -> TextSpec:
    """Sentences between the tokenizer's start and end, at most as long as the text transformer has positions."""
    sizes = model.sizes.text
    return TextSpec(FILE, sizes.positions, sizes.vocabulary, model.ids.pad, start, end, input=IDS)


def _encoder(model: Blip) -> BertEncoder:
    if model.encoder is None:
        raise ValueError(f"BLIP for {model.kind} has no text encoder")
    return model.encoder


def _sentences(model: Blip, images: int, texts: int, length: int) -> dict[str, Tensor]:
    """Image states and random sentences of different lengths, padded at the end."""
    sizes, generator = model.sizes, torch.Generator().manual_seed(10 * texts + length)
    ids = torch.randint(1, sizes.text.vocabulary, (texts, length), generator=generator)
    ids[ids == model.ids.pad] = model.ids.sep
    for row in range(texts):
        ids[row, max(2, length - row) :] = model.ids.pad
    return {STATES: _normal(images, sizes.vision.length, sizes.vision.width), IDS: ids}


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
