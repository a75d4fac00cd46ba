"""CoCa (Yu et al., arXiv 2205.01917) in open_clip's layout: captions and contrastive embeddings from one bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vlrt.errors import VlrtError
from vlrt.manifest import DecodeSpec, EmbedSpec, ImageSpec, Source, TextSpec
from vlrt_export import kv_graphs
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.clip_image import original_image_spec
from vlrt_export.clip_tokenizer import FILE, ClipTokenizer, find_tokenizer, stand_in
from vlrt_export.coca_checkpoint import CONFIG, load_coca, random_coca, read_config
from vlrt_export.coca_reference import PAD, reference_checks
from vlrt_export.graph import Graph, Plan
from vlrt_export.kv_graphs import MEMORY, STEP, Memory
from vlrt_export.modules.coca import Coca, CocaDecoder
from vlrt_export.request import Request

ENCODER, TEXT_ENCODER = "image_encoder", "text_encoder"
STATES = "image_states"
TASKS = ("caption", "embed", "classify", "match", "search")
_LONGEST, _SHORTEST, _BEAMS = 30, 5, 6
"""Tokens of a caption with its start, and beams, as open_clip's ``CoCa.generate`` has them."""

_CARD = (
    "Describes photographs in a sentence and scores how well a text fits one. Weak at counting, at spatial relations "
    "and at reading; its training pictures come from the web, with the biases of the web."
)
_RANDOM = "random weights: for latency work only"


def build(request: Request) -> Plan:
    """Plans the bundle of a CoCa checkpoint, or of random weights of the zoo entry's configuration.

    Options: `config` (open_clip's, where no file lies beside the weights), `tokenizer`.

    Raises:
        VlrtError: the checkpoint is not CoCa, is damaged, or has no configuration or tokenizer.
    """
    checkpoint = None if request.random else open_checkpoint(request.checkpoint(), patterns=(CONFIG,))
    config, preprocessing = read_config(checkpoint, request.option("config"))
    model = random_coca(config, request.seed) if checkpoint is None else load_coca(checkpoint, config)
    tokenizer = _tokenizer(request, checkpoint, model)
    text = replace(tokenizer.text_spec(model.sizes.context, model.sizes.vocabulary), pad_id=PAD, pad_to_context=True)
    decoder, tolerance = CocaDecoder(model).eval(), request.tolerance("graph", 1e-4)
    memory = Memory(STATES, model.sizes.dimension, model.sizes.queries - 1)
    return Plan(
        name=request.name,
        family="coca",
        tasks=TASKS,
        graphs=[
            _image_graph(model, tolerance),
            _text_graph(model, tolerance),
            kv_graphs.memory_graph(decoder, memory, tolerance),
            kv_graphs.step_graph(decoder, memory, tolerance),
        ],
        source=_source(request, checkpoint, tokenizer),
        image=_image_spec(model.sizes.image_size, preprocessing),
        text=text,
        decode=_decode_spec(decoder, memory, text),
        embed=_embed_spec(model),
        files={FILE: tokenizer.json()},
        card=_RANDOM if checkpoint is None else _CARD,
        checks=reference_checks(model, request.tolerance),
    )


def _tokenizer(request: Request, checkpoint: Checkpoint | None, model: Coca) -> ClipTokenizer:
    given = request.option("tokenizer")
    if checkpoint is None and given is None:
        return stand_in(model.sizes.vocabulary)
    return find_tokenizer(checkpoint, given)


def _image_spec(size: int, preprocessing: Mapping[str, Any]) -> ImageSpec:
    """open_clip's validation transform: bicubic on the shortest edge, centre crop as torchvision rounds it."""
    for name, usual in (("resize_mode", "shortest"), ("interpolation", "bicubic"), ("mode", "RGB")):
        if preprocessing.get(name, usual) != usual:
            raise VlrtError(f"`{name}` of `{CONFIG}` is {preprocessing[name]!r}, expected {usual!r}", "report it")
    plain = original_image_spec(size)
    mean, std = (tuple(preprocessing.get(name) or own) for name, own in (("mean", plain.mean), ("std", plain.std)))
    if len(mean) != 3 or len(std) != 3:
        raise VlrtError(f"`{CONFIG}` has the mean {list(mean)}, expected three numbers")
    return replace(plain, mean=mean, std=std)


def _image_graph(model: Coca, tolerance: float) -> Graph:
    side, generator = model.sizes.image_size, torch.Generator().manual_seed(0)
    cases = [{"pixels": torch.randn(n, 3, side, side, generator=generator)} for n in (2, 1)]
    outputs = ("image_embedding", STATES)
    return Graph(
        role=ENCODER,
        module=model.visual.eval(),
        inputs=cases[0],
        outputs=outputs,
        dynamic={"pixels": {0: "batch"}},
        output_axes={name: {0: "batch"} for name in outputs},
        cases=cases[1:],
        tolerance=tolerance,
    )


def _text_graph(model: Coca, tolerance: float) -> Graph:
    """Texts padded to the context: what an appended token sees depends on where the padding begins."""
    sizes, generator = model.sizes, torch.Generator().manual_seed(0)
    cases = []
    for texts in (2, 1, 3):
        ids = torch.randint(1, sizes.vocabulary, (texts, sizes.context), generator=generator)
        for row in range(texts):
            ids[row, 3 + 2 * row :] = PAD
        cases.append({"input_ids": ids})
    cases[0]["input_ids"][0] = torch.randint(1, sizes.vocabulary, (sizes.context,), generator=generator)
    return Graph(
        role=TEXT_ENCODER,
        module=model.text.eval(),
        inputs=cases[0],
        outputs=("text_embedding",),
        dynamic={"input_ids": {0: "texts"}},
        output_axes={"text_embedding": {0: "texts"}},
        cases=cases[1:],
        tolerance=tolerance,
    )


def _decode_spec(decoder: CocaDecoder, memory: Memory, text: TextSpec) -> DecodeSpec:
    if text.start_id is None or text.end_id is None:
        raise ValueError("CLIP's tokenizer has a start and an end")
    longest = min(_LONGEST, text.context)
    return DecodeSpec(
        chain=(ENCODER, MEMORY),
        step=STEP,
        vocabulary=text.vocabulary,
        start_ids=(text.start_id,),
        end_ids=(text.end_id,),
        pad_id=PAD,
        states=kv_graphs.states(decoder, memory),
        max_length=text.context,
        defaults={
            "num_beams": _BEAMS,
            "max_new_tokens": longest - 1,
            "min_length": min(_SHORTEST, longest - 1),
            "suppress_tokens": [PAD],
        },
    )


def _embed_spec(model: Coca) -> EmbedSpec:
    return EmbedSpec(
        image=(ENCODER,),
        text=(TEXT_ENCODER,),
        dimension=model.sizes.dimension,
        scale=float(model.logit_scale.detach().exp()),
        templates=("a photo of a {}.",),
    )


def _source(request: Request, checkpoint: Checkpoint | None, tokenizer: ClipTokenizer) -> Source:
    notes = [f"tokenizer: {tokenizer.note}"] if tokenizer.note else []
    if checkpoint is None:
        return Source("random", f"seed {request.seed}", "none", "; ".join([_RANDOM, *notes]))
    known = request.source == request.entry.source
    licence = request.entry.license if known and request.entry.license else "see the checkpoint's source"
    return Source(checkpoint.origin, checkpoint.revision, licence, "; ".join(notes))
