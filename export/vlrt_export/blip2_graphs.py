"""The graphs of BLIP-2 and InstructBLIP and the manifest sections that describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from vlrt.manifest import AnswerSpec, DecodeSpec, EmbedSpec, MatchSpec
from vlrt_export import kv_graphs
from vlrt_export.blip2_checkpoint import Blip2, check_part
from vlrt_export.graph import Graph
from vlrt_export.kv_graphs import MASK, MEMORY, STEP, Memory, Prefix
from vlrt_export.modules.llama import Llama
from vlrt_export.modules.opt import Opt
from vlrt_export.modules.qformer import (
    InstructedProjection,
    QueryEmbedding,
    QueryMatch,
    QueryProjection,
    TextQueryEmbedding,
)
from vlrt_export.modules.t5 import T5Decoder, T5Encoder

ENCODER, QUERIES, PROMPT, MATCH = "image_encoder", "query_transformer", "prompt_encoder", "image_text_match"
IMAGE_EMBEDDING, TEXT_ENCODER = "image_embedding", "text_encoder"
STATES, SEEN, PROMPT_STATES = "image_states", "query_states", "prompt_states"
IDS, QUERY_IDS = "input_ids", "query_ids"
TEMPLATE = "Question: {} Answer:"
"""How BLIP-2 was asked (Li et al., arXiv 2301.12597, section 4.1); InstructBLIP takes the bare question."""
_SCALE = 1 / 0.07
"""Inverse temperature that the contrastive training starts from; checkpoints of transformers do not keep theirs."""


def graphs(model: Blip2, tolerance: float) -> list[Graph]:
    """All graphs of a model."""
    if model.retrieval:
        return [encoder_graph(model, tolerance), *retrieval_graphs(model, tolerance)]
    found = [encoder_graph(model, tolerance), query_graph(model, tolerance)]
    if isinstance(model.decoder, T5Decoder):
        memory = decoder_memory(model)
        found.append(prompt_graph(model, check_part(model.encoder, "encoder"), tolerance))
        found.append(kv_graphs.memory_graph(model.decoder, memory, tolerance))
        found.append(kv_graphs.step_graph(model.decoder, memory, tolerance))
    elif isinstance(model.decoder, (Opt, Llama)):
        found.append(kv_graphs.step_graph(model.decoder, None, tolerance, image_prefix(model)))
    return found


def encoder_graph(model: Blip2, tolerance: float) -> Graph:
    """Pixels [N, 3, H, W] to image states [N, S, M]."""
    side = model.sizes.vision.image_size
    return _graph(ENCODER, model.vision, [{"pixels": _normal(n, 3, side, side)} for n in (2, 1)], (STATES,), tolerance)


def query_graph(model: Blip2, tolerance: float) -> Graph:
    """Image states to the language model's inputs [N, Q, W]; InstructBLIP's queries also read the instruction."""
    projection = model.heads["language_projection"]
    cases = [_states(model, n) for n in (2, 1)]
    if not model.instructed:
        return _graph(QUERIES, QueryProjection(model.qformer, projection), cases, (SEEN,), tolerance)
    cases = [_states(model, n) | {QUERY_IDS: _texts(model, n, length)} for n, length in ((2, 7), (1, 3), (3, 5))]
    module = InstructedProjection(model.qformer, projection, model.ids.query_pad)
    return _graph(QUERIES, module, cases, (SEEN,), tolerance)


def prompt_graph(model: Blip2, encoder: T5Encoder, tolerance: float) -> Graph:
    """The language model's inputs and a prompt behind them to what its decoder reads."""
    sizes, width = encoder.sizes, model.sizes.qformer.queries
    cases = []
    for images, length in ((2, 6), (1, 1), (3, 4)):
        ids = _padded(images, length, sizes.vocabulary, model.ids.pad)
        cases.append({SEEN: _normal(images, width, sizes.width), IDS: ids})
    graph = _graph(PROMPT, encoder, cases, (PROMPT_STATES, MASK), tolerance)
    axes = {0: "batch", 1: "states"}
    return replace(graph, output_axes={PROMPT_STATES: axes, MASK: axes})


def retrieval_graphs(model: Blip2, tolerance: float) -> list[Graph]:
    """The matching head, and both sides of the contrastive space."""
    pad, heads = model.ids.query_pad, model.heads
    calls = ((2, 3, 7), (1, 1, 3), (3, 1, 5), (1, 4, 6))
    pairs = [_states(model, n) | {IDS: _texts(model, n * k, length)} for n, k, length in calls]
    match = _graph(
        MATCH, QueryMatch(model.qformer, heads["itm_head"], pad), pairs, ("match_probability",), tolerance, "texts"
    )
    image = QueryEmbedding(model.qformer, heads["vision_projection"])
    text = TextQueryEmbedding(model.qformer, heads["text_projection"], pad)
    images, texts = [_states(model, n) for n in (2, 1)], [{IDS: pair[IDS]} for pair in pairs]
    return [
        match,
        _graph(IMAGE_EMBEDDING, image, images, ("image_embedding",), tolerance),
        _graph(TEXT_ENCODER, text, texts, ("text_embedding",), tolerance, "texts"),
    ]


def image_prefix(model: Blip2) -> Prefix:
    """What stands before the words of OPT or LLaMA."""
    return Prefix(SEEN, model.sizes.qformer.queries, check_part(model.decoder, "decoder").sizes.width)


def decoder_memory(model: Blip2) -> Memory:
    """What T5's decoder reads."""
    return Memory(PROMPT_STATES, check_part(model.encoder, "encoder").sizes.width, 0)


def decode_spec(model: Blip2, defaults: Mapping[str, object]) -> DecodeSpec | None:
    """The decode section; sequences of OPT and LLaMA begin with places for the image."""
    decoder, ids, sizes = model.decoder, model.ids, model.sizes
    if decoder is None:
        return None
    behind_prefix = isinstance(decoder, (Opt, Llama))
    places = (ids.image,) * sizes.qformer.queries if behind_prefix else ()
    prefix, memory = (image_prefix(model), None) if behind_prefix else (None, decoder_memory(model))
    return DecodeSpec(
        chain=(ENCODER, QUERIES) if behind_prefix else (ENCODER, QUERIES, PROMPT, MEMORY),
        step=STEP,
        vocabulary=decoder.sizes.vocabulary,
        start_ids=(*places, ids.start),
        end_ids=ids.ends,
        pad_id=ids.pad,
        states=kv_graphs.states(decoder, memory, prefix),
        max_length=sizes.positions,
        defaults=dict(defaults),
    )


def answer_spec(model: Blip2) -> AnswerSpec | None:
    """Questions are asked of the encoder where there is one, else they stand behind the image."""
    if model.decoder is None:
        return None
    template = "{}" if model.instructed else TEMPLATE
    return AnswerSpec("encoder" if model.encoder else "prompt", template)


def vocabulary(model: Blip2) -> int:
    """Of the language model."""
    size: int = check_part(model.decoder, "language model").sizes.vocabulary
    return size


def match_spec(model: Blip2) -> MatchSpec | None:
    return MatchSpec((ENCODER,), MATCH) if model.retrieval else None


def embed_spec(model: Blip2) -> EmbedSpec | None:
    """The contrastive space of a retrieval model, where each query gives an image an embedding."""
    if not model.retrieval:
        return None
    return EmbedSpec((ENCODER, IMAGE_EMBEDDING), (TEXT_ENCODER,), model.sizes.shared, _SCALE)


def _graph(
    role: str,
    module: nn.Module,
    cases: Sequence[Mapping[str, Tensor]],
    outputs: Sequence[str],
    tolerance: float,
    rows: str = "batch",
) -> Graph:
    """A graph over a batch of images, or of `rows` texts with a length of their own."""
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in cases[0]}
    axes |= {name: {0: rows, 1: "length"} for name in (IDS, QUERY_IDS) if name in cases[0]}
    return Graph(
        role=role,
        module=module.eval(),
        inputs=cases[0],
        outputs=outputs,
        dynamic=axes,
        output_axes={name: {0: rows} for name in outputs},
        cases=cases[1:],
        tolerance=tolerance,
    )


def _states(model: Blip2, images: int) -> dict[str, Tensor]:
    return {STATES: _normal(images, model.sizes.vision.length, model.sizes.vision.width)}


def _texts(model: Blip2, texts: int, length: int) -> Tensor:
    return _padded(texts, length, model.sizes.qformer.vocabulary, model.ids.query_pad)


def _padded(rows: int, length: int, vocabulary: int, pad_id: int) -> Tensor:
    """Random ids of different lengths, padded at the end."""
    ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(10 * rows + length))
    ids[ids == pad_id] = (pad_id + 1) % vocabulary
    for row in range(rows):
        ids[row, max(1, length - row) :] = pad_id
    return ids


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))
