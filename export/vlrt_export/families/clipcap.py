"""ClipCap (Mokady et al., arXiv 2111.09734): CLIP's image vector, mapped to a prefix that GPT-2 continues."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import nn

from vlrt.errors import VlrtError
from vlrt.manifest import DecodeSpec, ImageSpec, Source, TextSpec
from vlrt_export import hub, kv_graphs
from vlrt_export.checkpoints import Checkpoint, open_checkpoint
from vlrt_export.clip_checkpoint import is_transformers_layout, load_clip, random_clip
from vlrt_export.clip_image import image_spec, original_image_spec
from vlrt_export.clipcap_checkpoint import ClipCap, check_features, load_clipcap, random_clipcap
from vlrt_export.clipcap_reference import reference_checks
from vlrt_export.graph import Graph, Plan
from vlrt_export.kv_graphs import STEP, Prefix
from vlrt_export.modules.clip import Clip
from vlrt_export.modules.clipcap_mapper import ImageFeatures
from vlrt_export.request import Request
from vlrt_export.text_files import FILE, find_tokenizer, stand_in

ENCODER, MAPPER = "image_encoder", "prefix_mapper"
FEATURES, PREFIX = "image_features", "image_prefix"
_STOP = "."
_LONGEST = 67
"""The reference stops at a full stop, which it shows, or after 67 tokens."""

_CARD = (
    "Describes photographs in a sentence. It knows an image by a single vector of CLIP, so it names the scene and its "
    "main things, and guesses numbers, colours and places; GPT-2 adds what usually comes with them."
)
_RANDOM = "random weights: for latency work only"


@dataclass(frozen=True)
class _Tower:
    """The CLIP whose image tower the mapper was trained on, and where it came from."""

    clip: Clip
    checkpoint: Checkpoint | None
    pixels: ImageSpec
    normalise: bool


def build(request: Request) -> Plan:
    """Plans the bundle of a ClipCap checkpoint, or of random weights in the size of the zoo's entry.

    Options: `clip` (its checkpoint), `normalize` (whether the mapper was trained on vectors of length one), `heads` (of
    the language model), `tokenizer`; for random weights `clip_sizes`, `gpt2` and `mapper`.

    Raises:
        VlrtError: the checkpoint is not ClipCap, is damaged, belongs to another CLIP, or there is no tokenizer.
    """
    checkpoint = None if request.random else open_checkpoint(request.checkpoint())
    tower = _tower(request)
    if checkpoint is None:
        model = random_clipcap(request.options, tower.clip.sizes.dimension, request.seed)
    else:
        model = load_clipcap(checkpoint, request.option("heads"))
    check_features(model, tower.clip.sizes.dimension)
    tokenizer = _tokenizer(request, model)
    sizes, tolerance = model.decoder.sizes, request.tolerance("graph", 1e-4)
    return Plan(
        name=request.name,
        family="clipcap",
        tasks=("caption",),
        graphs=[
            _encoder_graph(tower, tolerance),
            _mapper_graph(model, tolerance),
            kv_graphs.step_graph(model.decoder, None, tolerance, _prefix(model)),
        ],
        source=_source(request, checkpoint, tower),
        image=tower.pixels,
        text=TextSpec(FILE, sizes.positions, sizes.vocabulary, sizes.vocabulary - 1),
        decode=_decode_spec(model, _stop_id(tokenizer)),
        files={FILE: str(tokenizer.to_str()).encode()},
        card=_RANDOM if checkpoint is None else _CARD,
        checks=reference_checks(model, tower.clip, tower.checkpoint, tower.normalise, request.tolerance),
    )


def _tower(request: Request) -> _Tower:
    normalise = bool(request.option("normalize", False))
    if request.random:
        clip = random_clip(request.option("clip_sizes", {}), request.seed)
        return _Tower(clip, None, original_image_spec(clip.sizes.vision.image_size), normalise)
    source = request.option("clip")
    if source is None:
        raise VlrtError("a ClipCap checkpoint has no image tower", "give the CLIP it was trained with by `--clip`")
    checkpoint = open_checkpoint(source)
    clip = load_clip(checkpoint)
    size = clip.sizes.vision.image_size
    if is_transformers_layout(checkpoint):
        return _Tower(clip, checkpoint, image_spec(checkpoint.json("preprocessor_config.json"), size), normalise)
    return _Tower(clip, checkpoint, original_image_spec(size), normalise)


def _tokenizer(request: Request, model: ClipCap) -> Tokenizer:
    vocabulary, given = model.decoder.sizes.vocabulary, request.option("tokenizer")
    if request.random and given is None:
        return stand_in(vocabulary, {vocabulary - 1: "<|endoftext|>"})
    repository = request.option("tokenizer_source")
    if given is None and repository is not None:
        given = str(hub.fetch(repository, weights=False).folder)
    return find_tokenizer(None, given, vocabulary)


def _stop_id(tokenizer: Tokenizer) -> int:
    """The id that ends a caption: the first that the tokenizer gives for a full stop, as in the reference."""
    ids = tokenizer.encode(_STOP, add_special_tokens=False).ids
    if not ids:
        raise VlrtError(f"the tokenizer has no token for `{_STOP}`", "give GPT-2's with `--tokenizer`")
    return int(ids[0])


def _encoder_graph(tower: _Tower, tolerance: float) -> Graph:
    side, generator = tower.clip.sizes.vision.image_size, torch.Generator().manual_seed(0)
    cases = [{"pixels": torch.randn(n, 3, side, side, generator=generator)} for n in (2, 1)]
    return _graph(ENCODER, ImageFeatures(tower.clip.visual, tower.normalise), cases, FEATURES, tolerance)


def _mapper_graph(model: ClipCap, tolerance: float) -> Graph:
    generator = torch.Generator().manual_seed(0)
    cases = [{FEATURES: torch.randn(n, model.sizes.features, generator=generator)} for n in (2, 1, 3)]
    return _graph(MAPPER, model.mapper, cases, PREFIX, tolerance)


def _graph(role: str, module: nn.Module, cases: list[dict[str, torch.Tensor]], output: str, tolerance: float) -> Graph:
    return Graph(
        role=role,
        module=module.eval(),
        inputs=cases[0],
        outputs=(output,),
        dynamic={name: {0: "batch"} for name in cases[0]},
        output_axes={output: {0: "batch"}},
        cases=cases[1:],
        tolerance=tolerance,
    )


def _prefix(model: ClipCap) -> Prefix:
    return Prefix(PREFIX, model.sizes.prefix, model.sizes.width)


def _decode_spec(model: ClipCap, stop: int) -> DecodeSpec:
    """Captions begin with the prefix alone; the last id of the vocabulary, GPT-2's end of text, stands in its place."""
    sizes = model.decoder.sizes
    return DecodeSpec(
        chain=(ENCODER, MAPPER),
        step=STEP,
        vocabulary=sizes.vocabulary,
        start_ids=(sizes.vocabulary - 1,) * model.sizes.prefix,
        end_ids=(stop,),
        pad_id=sizes.vocabulary - 1,
        states=kv_graphs.states(model.decoder, None, _prefix(model)),
        max_length=sizes.positions,
        defaults={"max_new_tokens": min(_LONGEST, sizes.positions - model.sizes.prefix)},
        end_is_text=True,
    )


def _source(request: Request, checkpoint: Checkpoint | None, tower: _Tower) -> Source:
    if checkpoint is None:
        return Source("random", f"seed {request.seed}", "none", _RANDOM)
    known = request.source == request.entry.source
    licence = request.entry.license if known and request.entry.license else "see the checkpoint's source"
    seen = f"image tower: {tower.checkpoint.origin} {tower.checkpoint.revision}" if tower.checkpoint else ""
    return Source(checkpoint.origin, checkpoint.revision, licence, seen)
