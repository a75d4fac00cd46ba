"""CLIP (Radford et al., arXiv 2103.00020): two towers into one space, from transformers' or OpenAI's files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlrt.manifest import EmbedSpec, ImageSpec, Source
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.clip_checkpoint import is_transformers_layout, load_clip, random_clip
from vlrt_export.clip_image import image_spec, original_image_spec
from vlrt_export.clip_reference import reference_checks
from vlrt_export.clip_tokenizer import FILE, ClipTokenizer, find_tokenizer, stand_in
from vlrt_export.graph import Graph, Plan
from vlrt_export.modules.clip import Clip, ImageEmbedding, TextEmbedding
from vlrt_export.request import Request

TASKS = ("embed", "classify", "match", "search")
TEMPLATES = ("a photo of a {}.",)
"""The paper's default prompt, section 3.1.4."""

_CARD = (
    "Scores how well a text describes a photograph. Weak at counting, spatial relations, fine differences and "
    "printed or handwritten text; its training pictures come from the web, with the biases of the web."
)
_RANDOM = "random weights: for latency work only"


def build(request: Request) -> Plan:
    """Plans the bundle of a CLIP checkpoint, or of random weights in the size of the zoo's entry.

    Raises:
        VlrtError: the checkpoint is not CLIP, is damaged, or has no tokenizer.
    """
    checkpoint = None if request.random else open_checkpoint(request.checkpoint())
    model = (
        load_clip(checkpoint, request.option("activation"))
        if checkpoint
        else random_clip(request.options, request.seed)
    )
    tokenizer = _tokenizer(request, checkpoint, model)
    pixels = _image_spec(checkpoint, model)
    text = tokenizer.text_spec(model.sizes.text.context, model.sizes.text.vocabulary)
    return Plan(
        name=request.name,
        family="clip",
        tasks=TASKS,
        graphs=_graphs(model, request.tolerance("graph", 1e-4)),
        source=_source(request, checkpoint, tokenizer),
        image=pixels,
        text=text,
        embed=_embed_spec(model),
        files={FILE: tokenizer.json()},
        card=_RANDOM if checkpoint is None else _CARD,
        checks=reference_checks(model, checkpoint, pixels, request.tolerance),
    )


def _tokenizer(request: Request, checkpoint: Checkpoint | None, model: Clip) -> ClipTokenizer:
    given = request.option("tokenizer")
    if checkpoint is None and given is None:
        return stand_in(model.sizes.text.vocabulary)
    return find_tokenizer(checkpoint, given)


def _image_spec(checkpoint: Checkpoint | None, model: Clip) -> ImageSpec:
    size = model.sizes.vision.image_size
    if checkpoint is None or not is_transformers_layout(checkpoint):
        return original_image_spec(size)
    return image_spec(checkpoint.json("preprocessor_config.json"), size)


def _source(request: Request, checkpoint: Checkpoint | None, tokenizer: ClipTokenizer) -> Source:
    notes = [f"tokenizer: {tokenizer.note}"] if tokenizer.note else []
    if checkpoint and checkpoint.layout == "state-dict" and not is_transformers_layout(checkpoint):
        # Other projects write this layout too, some with another activation; the weights do not tell.
        notes.append(f"activation: {request.option('activation', 'quick_gelu, as in the original')}")
    if checkpoint is None:
        return Source("random", f"seed {request.seed}", "none", "; ".join([_RANDOM, *notes]))
    known = request.source == request.entry.source
    licence = request.entry.license if known and request.entry.license else "see the checkpoint's source"
    return Source(checkpoint.origin, checkpoint.revision, licence, "; ".join(notes))


def _embed_spec(model: Clip) -> EmbedSpec:
    return EmbedSpec(
        image=("image_encoder",),
        text=("text_encoder",),
        dimension=model.sizes.dimension,
        scale=float(model.logit_scale.detach().exp()),
        templates=TEMPLATES,
        learned_context=("context", "context_index"),
        token_width=model.sizes.text.transformer.width,
    )


def _graphs(model: Clip, tolerance: float) -> tuple[Graph, ...]:
    image = Graph(
        role="image_encoder",
        module=ImageEmbedding(model).eval(),
        inputs={"pixels": _pixels(model, 2)},
        outputs=("image_embedding",),
        dynamic={"pixels": {0: "batch"}},
        output_axes={"image_embedding": {0: "batch"}},
        cases=[{"pixels": _pixels(model, batch)} for batch in (1, 3)],
        tolerance=tolerance,
    )
    context = model.sizes.text.context
    text = Graph(
        role="text_encoder",
        module=TextEmbedding(model).eval(),
        inputs=_text_case(model, 2, min(7, context), 3),
        outputs=("text_embedding",),
        dynamic={
            "input_ids": {0: "batch", 1: "length"},
            "context": {0: "batch", 1: "vectors"},
            "context_index": {0: "batch", 1: "length"},
        },
        output_axes={"text_embedding": {0: "batch"}},
        cases=[_text_case(model, *shape) for shape in ((1, context, 1), (3, min(12, context), 4), (1, 3, 1))],
        tolerance=tolerance,
    )
    return image, text


def _pixels(model: Clip, batch: int) -> Tensor:
    size = model.sizes.vision.image_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))


def _text_case(model: Clip, batch: int, length: int, vectors: int) -> dict[str, Any]:
    """Random ids with an end at another place in each row, and some of them replaced by context vectors."""
    generator = torch.Generator().manual_seed(100 * batch + length)
    sizes = model.sizes.text
    end = sizes.vocabulary - 1 if sizes.end_id is None else sizes.end_id
    ids = torch.randint(0, sizes.vocabulary - 2, (batch, length), generator=generator)
    index = torch.randint(-1, vectors, (batch, length), generator=generator)
    for row in range(batch):
        ids[row, length - 1 - row % (length - 1)] = end
    index[ids == end] = -1
    context = torch.randn(batch, vectors, sizes.transformer.width, generator=generator)
    return {"input_ids": ids, "context": context, "context_index": index}
