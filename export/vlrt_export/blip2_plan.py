"""The plan of a BLIP-2 or InstructBLIP bundle; both families are the same but for the Q-Former's text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Tokenizer

from vlrt.errors import VlrtError
from vlrt.manifest import ImageSpec, Source, TextSpec
from vlrt_export import blip2_graphs, clip_image
from vlrt_export.blip2_checkpoint import GENERATION, Blip2, load_blip2, random_blip2
from vlrt_export.blip2_graphs import IDS, QUERY_IDS
from vlrt_export.blip2_reference import reference_checks
from vlrt_export.blip2_sizes import Blip2Ids
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.generation import decode_defaults
from vlrt_export.graph import Plan
from vlrt_export.modules.llama import Llama
from vlrt_export.request import Request
from vlrt_export.text_files import FILE, find_tokenizer, stand_in, start_and_end

QUERY_FILE, QUERY_FOLDER = "query_tokenizer.json", "qformer_tokenizer"
_CARD = (
    "Describes photographs and answers questions about them in free text, or says whether a sentence fits. Counts "
    "badly, invents what it cannot see, and carries the biases of its training pictures and of its language model."
)
_RANDOM = "random weights: for latency work only"


@dataclass(frozen=True)
class _Texts:
    """Sections and files of a model's tokenizers."""

    text: TextSpec
    files: dict[str, bytes]
    instruction: TextSpec | None = None


def plan(request: Request, family: str, instructed: bool) -> Plan:
    """Plans the bundle of a checkpoint, or of random weights in the size of the zoo's entry.

    Args:
        family: as `models.yaml` names it.
        instructed: whether the family's Q-Former reads the instruction.

    Raises:
        VlrtError: the checkpoint is another model, is damaged, or has no tokenizer.
    """
    checkpoint = open_checkpoint(request.checkpoint(), patterns=(f"{QUERY_FOLDER}/*",)) if not request.random else None
    if checkpoint is None:
        config: Mapping[str, Any] = request.option("config", {})
        model = random_blip2(config, request.option("kind", GENERATION), request.seed)
    else:
        config, model = checkpoint.config, load_blip2(checkpoint)
    if model.instructed != instructed:
        what = f"the checkpoint is {'an' if model.instructed else 'no'} InstructBLIP"
        raise VlrtError(what, f"`vlrt export {'instructblip' if model.instructed else 'blip2'} --source …`")
    model, texts = _texts(request, checkpoint, model)
    pixels = _image_spec(checkpoint, model)
    graphs = blip2_graphs.graphs(model, request.tolerance("graph", 1e-4))
    return Plan(
        name=request.name,
        family=family,
        tasks=("match",) if model.retrieval else ("caption", "answer"),
        graphs=graphs,
        source=_source(request, checkpoint),
        image=pixels,
        text=texts.text,
        instruction=texts.instruction,
        decode=blip2_graphs.decode_spec(model, _defaults(config)),
        embed=blip2_graphs.embed_spec(model),
        answer=blip2_graphs.answer_spec(model),
        match=blip2_graphs.match_spec(model),
        files=texts.files,
        card=_RANDOM if checkpoint is None else _CARD,
        checks=reference_checks(model, config, graphs, pixels, request.tolerance),
    )


def _texts(request: Request, checkpoint: Checkpoint | None, model: Blip2) -> tuple[Blip2, _Texts]:
    """The sections of the texts, and the model with the ids that its tokenizer tells better."""
    given, ids = request.option("tokenizer"), model.ids
    if model.retrieval:
        tokenizer = _query_tokenizer(checkpoint, given, model)
        return model, _Texts(_query_text(model, tokenizer, FILE, IDS), {FILE: _json(tokenizer)})
    vocabulary = blip2_graphs.vocabulary(model)
    if checkpoint is None and given is None:
        special = {ids.pad: "<pad>", ids.image: "<image>", ids.start: "<s>", ids.ends[0]: "</s>"}
        tokenizer = stand_in(vocabulary, special)
    else:
        tokenizer = find_tokenizer(checkpoint, given, vocabulary)
    if checkpoint and isinstance(model.decoder, Llama):
        ids = ids_of_tokenizer(ids, tokenizer, checkpoint.json("tokenizer_config.json"))
        model = replace(model, ids=ids)
    end = ids.ends[0] if model.encoder else None
    text = TextSpec(FILE, model.sizes.positions, vocabulary, ids.pad, None, end, input=IDS)
    if not model.instructed:
        return model, _Texts(text, {FILE: _json(tokenizer)})
    folder = checkpoint.folder / QUERY_FOLDER if checkpoint and checkpoint.folder else None
    query = _query_tokenizer(None, str(folder) if folder else None, model)
    files = {FILE: _json(tokenizer), QUERY_FILE: _json(query)}
    return model, _Texts(text, files, _query_text(model, query, QUERY_FILE, QUERY_IDS))


def ids_of_tokenizer(ids: Blip2Ids, tokenizer: Tokenizer, config: Mapping[str, Any]) -> Blip2Ids:
    """Start, end and padding as a LLaMA's ``tokenizer_config.json`` names them, where it does.

    InstructBLIP's Vicuna was trained with ``</s>`` at the start and ``[PAD]`` (LAVIS ``Blip2VicunaInstruct``), and the
    configuration of the first converted LLaMA has ids of no tokenizer (0, 1 and -1). What ends a sentence there still
    does beside the tokenizer's own end.
    """

    def known(name: str, otherwise: int) -> int:
        token = config.get(name)
        found = tokenizer.token_to_id(str(token.get("content") if isinstance(token, Mapping) else token))
        return otherwise if found is None else int(found)

    ends = dict.fromkeys((known("eos_token", ids.ends[0]), *ids.ends))
    start, pad = known("bos_token", ids.start), known("pad_token", ids.pad)
    return replace(ids, start=start, ends=tuple(ends), pad=pad)


def _query_tokenizer(checkpoint: Checkpoint | None, given: str | None, model: Blip2) -> Tokenizer:
    """BERT's, which the Q-Former was trained with."""
    vocabulary = model.sizes.qformer.vocabulary
    if checkpoint is None and given is None:
        return stand_in(vocabulary, {model.ids.query_pad: "[PAD]", vocabulary - 2: "[CLS]", vocabulary - 1: "[SEP]"})
    return find_tokenizer(checkpoint, given, vocabulary)


def _query_text(model: Blip2, tokenizer: Tokenizer, file: str, name: str) -> TextSpec:
    sizes, pad = model.sizes.qformer, model.ids.query_pad
    start, end = start_and_end(tokenizer, "[CLS]", "[SEP]")
    return TextSpec(file, sizes.positions, sizes.vocabulary, pad, start, end, input=name)


def _json(tokenizer: Tokenizer) -> bytes:
    return str(tokenizer.to_str()).encode()


def _image_spec(checkpoint: Checkpoint | None, model: Blip2) -> ImageSpec:
    size = model.sizes.vision.image_size
    processor = checkpoint.json("preprocessor_config.json") if checkpoint else {}
    return clip_image.image_spec({"size": {"height": size, "width": size}} | processor, size)


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model is a model within the model: the library takes its options from its own configuration.

    Its `max_length` is that of the library where nothing is said, and then counts new tokens only.
    """
    return decode_defaults(config.get("text_config") or {}, start=0)


def _source(request: Request, checkpoint: Checkpoint | None) -> Source:
    if checkpoint is None:
        return Source("random", f"seed {request.seed}", "none", _RANDOM)
    known = request.source == request.entry.source
    licence = request.entry.license if known and request.entry.license else "see the checkpoint's source"
    return Source(checkpoint.origin, checkpoint.revision, licence)
