"""DALL-E's decoder-only transformer (Ramesh et al., arXiv 2102.12092), as DALLE-pytorch and ru-dalle train it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, normalizers

from vlrt.errors import VlrtError
from vlrt.manifest import DecodeSpec, ImageTokensSpec, Source, TextSpec
from vlrt_export import clip_tokenizer
from vlrt_export.checkpoints import open_checkpoint
from vlrt_export.codec_plan import codec_source
from vlrt_export.codec_reader import open_image_codec, read_image_codec
from vlrt_export.dalle_checks import reference_checks
from vlrt_export.dalle_graphs import IDS, STEP, TEXT, patterns, states, step_graph, text_graph
from vlrt_export.dalle_model import DalleModel, random_dalle, with_codec
from vlrt_export.dalle_pytorch_checkpoint import embedded_codec, is_dalle_pytorch, load_dalle_pytorch
from vlrt_export.graph import Plan
from vlrt_export.image_codec import ImageCodec
from vlrt_export.request import Request
from vlrt_export.rudalle_checkpoint import is_rudalle, load_rudalle
from vlrt_export.text_files import FILE, find_tokenizer, stand_in
from vlrt_export.vqgan_checkpoint import random_vqgan
from vlrt_export.yttm_tokenizer import is_yttm, read_yttm

_CLIP_WORDS = 49408
_CARD = (
    "Draws a picture from a sentence, code by code from the top left. It follows simple scenes of the kind it was "
    "trained on, miscounts, and cannot write; several candidates ranked by a CLIP are much better than one."
)
_RANDOM = "random weights: for latency work only"


def build(request: Request) -> Plan:
    """Plans the bundle of a DALL-E and its codec, or of random weights in the options `sizes` and `codec_sizes`.

    Options: `codec` (its checkpoint; the one inside DALLE-pytorch's file where not given), `tokenizer`, and those of
    `load_dalle_pytorch` and `load_rudalle`.

    Raises:
        VlrtError: another model's checkpoint, a damaged one, a codec that does not fit, or there is no tokenizer.
    """
    model = _with_codec(request, _model(request))
    tokenizer, sizes = _tokenizer(request, model), model.sizes
    tolerance = request.tolerance("graph", 1e-3)
    if model.codec is None:
        raise VlrtError("the checkpoint brings no codec of its pictures", "give one with `--codec`")
    return Plan(
        name=request.name,
        family="dalle",
        tasks=("generate", *_codec_tasks(model.codec)),
        graphs=[
            text_graph(model.text, tolerance),
            step_graph(model.decoder, tolerance),
            *model.codec.graphs(tolerance),
        ],
        source=_source(request, model),
        text=TextSpec(
            FILE,
            sizes.text,
            sizes.words - sizes.text,
            0,
            model.start,
            model.end,
            pad_to_context=True,
            input=IDS,
        ),
        decode=_decode_spec(model),
        codec=model.codec.spec(sizes.grid),
        image_tokens=ImageTokensSpec(sizes.grid, sizes.codebook),
        files={FILE: str(tokenizer.to_str()).encode()},
        card=_CARD if model.checkpoint else _RANDOM,
        checks=reference_checks(model),
    )


def _model(request: Request) -> DalleModel:
    if request.random:
        return random_dalle(request.option("sizes", {}), request.seed)
    checkpoint = open_checkpoint(request.checkpoint(), weights=request.option("weights", ""))
    if is_rudalle(checkpoint):
        return load_rudalle(checkpoint, request.options)
    if is_dalle_pytorch(checkpoint):
        return load_dalle_pytorch(checkpoint, request.options)
    shown = ", ".join(f"`{name}`" for name in list(checkpoint.tensors)[:3])
    what = f"`{checkpoint.origin}` is neither DALLE-pytorch's nor ru-dalle's; its tensors are {shown}, …"
    raise VlrtError(what, "`vlrt models` names the other families; DALL·E mini is `dalle-mini`")


def _with_codec(request: Request, model: DalleModel) -> DalleModel:
    given = request.option("codec")
    if given is not None:
        return with_codec(model, open_image_codec(given))
    if model.checkpoint is None:
        options = {"codebook": model.sizes.codebook} | request.option("codec_sizes", {})
        return with_codec(model, random_vqgan(options, request.seed))
    inside = embedded_codec(model.checkpoint)
    if inside is None:
        return model
    side = (inside.values.get("vae_params") or {}).get("image_size")
    return with_codec(model, read_image_codec(inside, side))


def _codec_tasks(codec: ImageCodec) -> tuple[str, ...]:
    return ("tokenize", "detokenize", "reconstruct") if codec.tokenizer else ("detokenize",)


def _tokenizer(request: Request, model: DalleModel) -> Tokenizer:
    words, given = model.sizes.words - model.sizes.text, request.option("tokenizer")
    if given is None and model.checkpoint is None:
        return stand_in(words, {0: "<pad>"})
    if given is not None and is_yttm(Path(given).expanduser()):
        return read_yttm(Path(given).expanduser(), words)
    if words == _CLIP_WORDS and not model.lowercase:
        return clip_tokenizer.find_tokenizer(model.checkpoint, given).tokenizer
    tokenizer = find_tokenizer(model.checkpoint, given, words)
    if model.lowercase:
        before = [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip(), *before])
    return tokenizer


def _decode_spec(model: DalleModel) -> DecodeSpec:
    """A picture begins behind the text, in whose places any code may stand."""
    sizes = model.sizes
    return DecodeSpec(
        chain=(TEXT,),
        step=STEP,
        vocabulary=sizes.codebook,
        start_ids=(0,) * sizes.positions,
        end_ids=(),
        pad_id=0,
        states=states(sizes),
        max_length=sizes.positions + sizes.cells,
        patterns=patterns(sizes),
        defaults={"do_sample": True, "max_new_tokens": sizes.cells, **_warpers(model)},
    )


def _warpers(model: DalleModel) -> dict[str, float]:
    """Of the references: ru-dalle's examples draw from 2,048 codes, DALLE-pytorch's script from a tenth of all ids."""
    if model.lowercase:
        return {"top_k": min(2048, model.sizes.codebook), "top_p": 0.995}
    every = model.sizes.words + model.sizes.codebook
    return {"top_k": max(1, min(model.sizes.codebook, every // 10))}


def _source(request: Request, model: DalleModel) -> Source:
    found = codec_source(request, model.checkpoint)
    codec = model.codec.checkpoint if model.codec else None
    if codec is None or codec.files == (model.checkpoint.files if model.checkpoint else ()):
        return found
    return Source(found.origin, found.revision, found.license, f"codec: {codec.origin} {codec.revision}")
