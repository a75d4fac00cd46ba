"""BLIP-2 and InstructBLIP checkpoints in transformers' layout: which model it is, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vlrt.errors import UsageError, VlrtError
from vlrt_export import weight_layout
from vlrt_export.blip2_layout import (
    HEAD,
    LLAMA_WORDS,
    OPT_WORDS,
    T5_WORDS,
    image_layout,
    llama_layout,
    opt_layout,
    qformer_layout,
    t5_decoder_layout,
    t5_encoder_layout,
)
from vlrt_export.blip2_sizes import Blip2Ids, Blip2Sizes, LanguageSizes, read_config
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.modules.dense import Dense
from vlrt_export.modules.llama import Llama, LlamaSizes
from vlrt_export.modules.opt import Opt, OptSizes
from vlrt_export.modules.qformer import QFormer
from vlrt_export.modules.t5 import T5Decoder, T5Encoder, T5Sizes
from vlrt_export.modules.vit import Vit
from vlrt_export.weight_layout import Layout, linear

GENERATION, RETRIEVAL = "generation", "retrieval"
KINDS = (GENERATION, RETRIEVAL)
_IGNORED = (
    r"position_ids$|^temp$|\.rotary_emb\.inv_freq$|(encoder|decoder)\.embed_tokens\.weight$"
    r"|^language_model\.lm_head\.weight$"
)
_RETRIEVAL_HEADS = ("vision_projection", "text_projection", "itm_head")
_PROJECTION = "language_projection"
_WORDS = {OptSizes: OPT_WORDS, LlamaSizes: LLAMA_WORDS, T5Sizes: T5_WORDS}

Module = TypeVar("Module", bound=nn.Module)
Read = Callable[[Callable[[], Module], Layout], Module]


@dataclass(frozen=True)
class Blip2:
    """A BLIP-2 or InstructBLIP in eval mode.

    Args:
        instructed: whether the Q-Former reads the instruction too (InstructBLIP).
        decoder: the language model, or its decoder; `None` for retrieval.
        encoder: T5's, which reads image and prompt.
        heads: `language_projection`, or retrieval's `vision_projection`, `text_projection` and `itm_head`.
        layouts: where the weights of each part lie in a state dict of transformers.
    """

    sizes: Blip2Sizes
    ids: Blip2Ids
    instructed: bool
    vision: Vit
    qformer: QFormer
    heads: nn.ModuleDict
    decoder: Opt | Llama | T5Decoder | None = None
    encoder: T5Encoder | None = None
    layouts: Mapping[nn.Module, Layout] = field(default_factory=dict)

    @property
    def retrieval(self) -> bool:
        return self.decoder is None


def load_blip2(checkpoint: Checkpoint) -> Blip2:
    """Reads a `Blip2ForConditionalGeneration`, `Blip2ForImageTextRetrieval` or `InstructBlipForConditionalGeneration`.

    Raises:
        VlrtError: another model; a tensor missing, left over, of another shape or dtype.
    """
    tensors, where = checkpoint.tensors, checkpoint.origin
    retrieval = "itm_head.weight" in tensors
    sizes, ids, instructed = read_config(checkpoint.config, where, retrieval)
    tied = _is_tied(tensors, sizes.language)

    def read(make: Callable[[], Module], layout: Layout) -> Module:
        return weight_layout.build(make, layout, tensors, where)

    model = _assemble(sizes, ids, instructed, tied, read)
    known = weight_layout.names_of(*model.layouts.values())
    weight_layout.check_surplus(tensors, known, _IGNORED, where)
    return model


def random_blip2(config: Mapping[str, Any], kind: str, seed: int) -> Blip2:
    """A model of a configuration's sizes with random weights that see the image.

    Raises:
        UsageError: an unknown kind.
        VlrtError: a configuration that `read_config` refuses.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no BLIP-2 for `{kind}`", f"one of {', '.join(KINDS)}")
    sizes, ids, instructed = read_config(config, "the zoo's entry", kind == RETRIEVAL)

    def make(build: Callable[[], Module], layout: Layout) -> Module:
        return build().eval().requires_grad_(False)

    tied = isinstance(sizes.language, OptSizes) or (isinstance(sizes.language, T5Sizes) and sizes.language.scaled_head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _assemble(sizes, ids, instructed, tied, make)


def _assemble(sizes: Blip2Sizes, ids: Blip2Ids, instructed: bool, tied: bool, read: Read[Any]) -> Blip2:
    layouts: dict[nn.Module, Layout] = {}

    def part(make: Callable[[], Module], layout: Layout) -> Module:
        module: Module = read(make, layout)
        layouts[module] = layout
        return module

    language = sizes.language
    vision = part(lambda: Vit(sizes.vision), image_layout(sizes.vision.layers))
    qformer = part(lambda: QFormer(sizes.qformer), qformer_layout(sizes.qformer, instructed))
    names = _RETRIEVAL_HEADS if language is None else (_PROJECTION,)
    head_layout = {key: value for name in names for key, value in linear(name, name).items()}
    heads = part(lambda: _heads(sizes), head_layout)
    decoder: Opt | Llama | T5Decoder | None = None
    encoder = None
    if isinstance(language, OptSizes):
        decoder = part(lambda: Opt(language, tied), opt_layout(language, tied))
    elif isinstance(language, LlamaSizes):
        decoder = part(lambda: Llama(language, tied), llama_layout(language, tied))
    elif isinstance(language, T5Sizes):
        decoder = part(lambda: T5Decoder(language, tied), t5_decoder_layout(language, tied))
        encoder = part(lambda: T5Encoder(language, ids.pad), t5_encoder_layout(language))
        encoder.words = decoder.words
    return Blip2(sizes, ids, instructed, vision, qformer, heads, decoder, encoder, layouts)


def _heads(sizes: Blip2Sizes) -> nn.ModuleDict:
    width, language = sizes.qformer.width, sizes.language
    if language is not None:
        return nn.ModuleDict({_PROJECTION: Dense(width, language.width)})
    outputs = (sizes.shared, sizes.shared, 2)
    return nn.ModuleDict({name: Dense(width, out) for name, out in zip(_RETRIEVAL_HEADS, outputs)})


def _is_tied(tensors: Mapping[str, Tensor], language: LanguageSizes | None) -> bool:
    words = _WORDS.get(type(language), OPT_WORDS)
    if HEAD not in tensors or words not in tensors:
        return True
    matrix, embedding = tensors[HEAD], tensors[words]
    return matrix.shape == embedding.shape and torch.equal(matrix, embedding)


def check_part(module: nn.Module | None, what: str) -> Any:
    """The part of a model that its kind must have."""
    if module is None:
        raise VlrtError(f"this model has no {what}", "report this with the model")
    return module
