"""GLIDE (Nichol et al., arXiv 2112.10741): words to 64 pixels, these to 256; inpainting; guidance by a noised CLIP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vlrt.diffusion_sections import InpaintSpec, LowResolutionSpec, PromptSpec, ScheduleSpec, StageSpec
from vlrt.errors import VlrtError
from vlrt.manifest import DiffusionSpec, Source, TextSpec
from vlrt_export import clip_tokenizer, glide_tokenizer
from vlrt_export.clip_tokenizer import ClipTokenizer
from vlrt_export.glide_checkpoint import Glide, Half, clip_sizes, find_folder, has_clip, open_folder, random_glide
from vlrt_export.glide_graphs import CLIP_GRADIENT, CLIP_IDS, CLIP_TEXT, StageNames, clip_graphs, stage_graphs
from vlrt_export.glide_reference import reference_checks
from vlrt_export.graph import Graph, Plan
from vlrt_export.request import Request

BASE, UPSAMPLER = StageNames("base"), StageNames("upsampler")
TOKENIZER, CLIP_TOKENIZER = "tokenizer.json", "clip_tokenizer.json"
BASE_PICTURE = "base_picture"
_TEMPERATURE = 0.997
_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"

_CARD = (
    "Paints pictures of 256 pixels after words. The published models were trained without pictures of people and of "
    "much else, paint faces and writing badly, and have the biases of pictures from the web. No safety checker runs."
)
_RANDOM = "random weights: for latency work only"


@dataclass(frozen=True)
class _Tokenizers:
    """GLIDE's own, and the noised CLIP's where there is one."""

    own: Tokenizer
    clip: ClipTokenizer | None

    @property
    def clip_end(self) -> int | None:
        """Id of the end in CLIP's."""
        return self.clip.tokenizer.token_to_id(clip_tokenizer.END) if self.clip else None


def build(request: Request) -> Plan:
    """Plans the bundle of GLIDE's checkpoints in a folder, or of random weights of the zoo entry's sizes.

    Options: `inpaint` (the checkpoints for inpainting), `config` (other sizes than the published), `tokenizer` (folder
    of the tokenizer's files, where they do not lie beside the weights).

    Raises:
        VlrtError: a checkpoint is missing, damaged or of other sizes, or there is no tokenizer.
    """
    config, inpaint = request.option("config", {}), bool(request.option("inpaint", False))
    if request.random:
        tokenizers = _Tokenizers(glide_tokenizer.stand_in(), None if inpaint else _stand_in_clip(config))
        model = random_glide(config, inpaint, tokenizers.clip_end, request.seed)
    else:
        folder = find_folder(request.checkpoint())
        tokenizers = _find_tokenizers(folder, request.option("tokenizer"), has_clip(folder) and not inpaint)
        model = open_folder(folder, config, inpaint, tokenizers.clip_end)
    tolerance = request.tolerance("graph", 1e-3)
    files = {TOKENIZER: str(tokenizers.own.to_str()).encode()}
    if tokenizers.clip:
        files[CLIP_TOKENIZER] = tokenizers.clip.json()
    return Plan(
        name=request.name,
        family="glide",
        tasks=("inpaint",) if inpaint else ("generate",),
        graphs=_graphs(model, tolerance),
        source=_source(request, model, tokenizers),
        diffusion=diffusion_spec(model, tokenizers.own, tokenizers.clip),
        files=files,
        card=_RANDOM if request.random else _CARD,
        checks=reference_checks(model, request.tolerance),
    )


def diffusion_spec(model: Glide, own: Tokenizer, clip: ClipTokenizer | None) -> DiffusionSpec:
    """The two stages as OpenAI's notebooks sample them."""
    prompts = [_prompt(names, half, own) for names, half in ((BASE, model.base), (UPSAMPLER, model.upsampler))]
    if model.clip and clip:
        text = clip.text_spec(model.clip.sizes.context, model.clip.sizes.vocabulary)
        # The original pads with zeros, which are ordinary ids; behind the end they change nothing.
        text = replace(text, tokenizer=CLIP_TOKENIZER, input=CLIP_IDS, pad_id=0, pad_to_context=True)
        prompts.append(PromptSpec(text, (CLIP_TEXT,)))
    inpaint = model.base.unet.sizes.inpaint
    kinds = {
        names.stage: InpaintSpec("replace", names.kept, names.masked, mask_keeps=True) for names in (BASE, UPSAMPLER)
    }
    return DiffusionSpec(
        stages=(_base_stage(model), _upsampler_stage(model)),
        prompts=tuple(prompts),
        inpaint=kinds if inpaint else {},
        max_size=model.upsampler.unet.sizes.image_size,
    )


def _base_stage(model: Glide) -> StageSpec:
    size, inpaint = model.base.unet.sizes.image_size, model.base.unet.sizes.inpaint
    schedule = ScheduleSpec(
        betas="squared_cosine",
        variance="learned_range",
        spacing="sections",
        sections="100",
        respaced=True,
        clip_sample=1.0,
    )
    return StageSpec(
        name=BASE.stage,
        denoiser=BASE.stage,
        shape=(3, size, size),
        schedule=schedule,
        rule="ddpm",
        rules=("ddim",),
        steps=100,
        guidance=5.0 if inpaint else 3.0,
        output=BASE_PICTURE,
        paired_noise=True,
        final_noise=True,
        gradient=CLIP_GRADIENT if model.clip else "",
    )


def _upsampler_stage(model: Glide) -> StageSpec:
    """Its noise is a little cooler than normal; the published strength is that of no guidance."""
    size, inpaint = model.upsampler.unet.sizes.image_size, model.upsampler.unet.sizes.inpaint
    schedule = ScheduleSpec(
        variance="learned_range", spacing="sections", sections="fast27", respaced=True, clip_sample=1.0
    )
    return StageSpec(
        name=UPSAMPLER.stage,
        denoiser=UPSAMPLER.stage,
        shape=(3, size, size),
        schedule=schedule,
        rule="ddpm" if inpaint else "ddim",
        rules=("ddim",) if inpaint else ("ddpm",),
        steps=27,
        low_resolution=LowResolutionSpec(BASE_PICTURE, UPSAMPLER.low_resolution, "bilinear", quantised=True),
        noise_scale=_TEMPERATURE,
        final_noise=True,
    )


def _prompt(names: StageNames, half: Half, tokenizer: Tokenizer) -> PromptSpec:
    sizes = half.unet.sizes
    text = TextSpec(
        TOKENIZER,
        sizes.context,
        sizes.vocabulary,
        _end(tokenizer, sizes.vocabulary),
        pad_to_context=True,
        input=names.ids,
    )
    return PromptSpec(text, (names.text,), mask=names.mask)


def _end(tokenizer: Tokenizer, vocabulary: int) -> int:
    """The last id, which stands for padding.

    Raises:
        VlrtError: the tokenizer lacks it, or is another model's.
    """
    end = tokenizer.token_to_id(glide_tokenizer.END)
    if end is None or end >= vocabulary or len(tokenizer.get_vocab()) > vocabulary:
        what = f"the tokenizer has {len(tokenizer.get_vocab())} ids, the model {vocabulary}"
        raise VlrtError(what, "give GLIDE's own with `--tokenizer`")
    return int(end)


def _find_tokenizers(folder: Path, given: str | None, with_clip: bool) -> _Tokenizers:
    """Those beside the weights, or of the folder that the user names."""
    own = glide_tokenizer.find_tokenizer(folder, given)
    if not with_clip:
        return _Tokenizers(own, None)
    places = [Path(place) / _VOCABULARY_FILE for place in (given, folder) if place]
    file = next((str(path) for path in places if path.is_file()), None)
    return _Tokenizers(own, clip_tokenizer.find_tokenizer(None, file))


def _stand_in_clip(config: dict[str, Any]) -> ClipTokenizer:
    return clip_tokenizer.stand_in(clip_sizes(config).vocabulary)


def _graphs(model: Glide, tolerance: float) -> list[Graph]:
    graphs = [*stage_graphs(BASE, model.base, tolerance), *stage_graphs(UPSAMPLER, model.upsampler, tolerance)]
    return [*graphs, *clip_graphs(model.clip, tolerance)] if model.clip else graphs


def _source(request: Request, model: Glide, tokenizers: _Tokenizers) -> Source:
    if model.folder is None:
        return Source("random", model.revision, "none", _RANDOM)
    note = f"CLIP's tokenizer: {tokenizers.clip.note}" if tokenizers.clip and tokenizers.clip.note else ""
    notes = [note, "no safety checker and no watermark"]
    return Source(model.folder.name, model.revision, request.entry.license, "; ".join(filter(None, notes)))
