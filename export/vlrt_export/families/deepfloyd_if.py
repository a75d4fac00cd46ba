"""DeepFloyd IF (after Imagen; Saharia et al., arXiv 2205.11487) in diffusers' layout: three folders, one bundle."""

from __future__ import annotations

from vlrt.diffusion_sections import PromptSpec
from vlrt.manifest import DiffusionSpec
from vlrt_export.diffusers_folder import RANDOM_NOTE, Pipeline, open_pipeline, random_pipeline, source_of
from vlrt_export.graph import Graph, Plan
from vlrt_export.if_reference import if_checks
from vlrt_export.if_stages import BASE, MASK, STATES, SUPER, T5, T5_IDS, PixelStage, Upscaler
from vlrt_export.picture_checks import LEAST
from vlrt_export.request import Request
from vlrt_export.t5_prompt import find_t5_tokenizer, load_t5_prompt, t5_prompt_graph, t5_text_spec

TOKENIZER, CONTEXT = "t5_tokenizer.json", 77
"""IF was trained with prompts of 77 tokens, though T5 reads longer ones."""

_KINDS = {"text_encoder": "T5EncoderModel", "unet": "UNet2DConditionModel"}
_CARD = (
    "Paints pictures after words, from 64 pixels upwards; good at writing inside pictures. Has the biases of pictures "
    "from the web. No safety checker runs, no watermark is written. Prompts are put into lower case; the reference "
    "also strips addresses and markup from them where beautifulsoup4 and ftfy are installed, which is not done here."
)


def build(request: Request) -> Plan:
    """Plans the bundle of an IF pipeline, or of random weights in the zoo entry's sizes.

    Options: `super_resolution`, `upscaler` (folders or hub ids of the second stage and of a Stable Diffusion x4
    upscaler as the third); `context` (of the prompts).

    Raises:
        VlrtError: a component is missing, damaged or of another kind.
    """
    folders = _open(request)
    pixels = [PixelStage(name, folders[name]) for name in (BASE, SUPER) if name in folders]
    upscaler = Upscaler(folders["upscaler"], pixels[-1]) if "upscaler" in folders else None
    encoder = load_t5_prompt(folders[BASE]["text_encoder"])
    base = folders[BASE]
    tokenizer = find_t5_tokenizer(base["tokenizer"].folder if "tokenizer" in base else None, encoder.sizes.vocabulary)
    context = int(request.option("context", CONTEXT))
    words = t5_text_spec(TOKENIZER, encoder.sizes, context, T5_IDS)
    tolerance = request.tolerance("graph", 1e-3)
    graphs: list[Graph] = [t5_prompt_graph(encoder, T5, (T5_IDS, MASK, STATES), tolerance)]
    for stage in pixels:
        graphs += stage.graphs(encoder.sizes.width, tolerance)
    prompts = [PromptSpec(words, (T5,), mask=MASK, lowercase=True)]
    files = {TOKENIZER: str(tokenizer.to_str()).encode()}
    if upscaler is not None:
        graphs += upscaler.graphs(tolerance)
        prompts.append(upscaler.prompt())
        files |= upscaler.files()
    stages = [stage.spec() for stage in pixels] + ([upscaler.spec()] if upscaler is not None else [])
    return Plan(
        name=request.name,
        family="deepfloyd-if",
        tasks=("generate", "upscale") if SUPER in folders else ("generate",),
        graphs=graphs,
        source=source_of(request, base, _notes(folders)),
        diffusion=DiffusionSpec(
            stages=tuple(stages), prompts=tuple(prompts), upscale_start=SUPER if SUPER in folders else ""
        ),
        files=files,
        card=RANDOM_NOTE if request.random else _CARD,
        checks=() if request.random else if_checks(folders, context, request.tolerance("psnr", LEAST)),
    )


def _open(request: Request) -> dict[str, Pipeline]:
    """The folders by their stages' names."""
    given = {SUPER: request.option("super_resolution"), "upscaler": request.option("upscaler")}
    if request.random:
        config = request.option("config", {})
        named = {name: sizes for name, sizes in config.items() if name in (BASE, SUPER)}
        return {
            name: random_pipeline("IFPipeline", _KINDS, {**config, "unet": sizes}, request.seed + 10 * number)
            for number, (name, sizes) in enumerate(named.items())
        }
    others = {name: open_pipeline(source) for name, source in given.items() if source}
    return {BASE: open_pipeline(request.checkpoint()), **others}


def _notes(folders: dict[str, Pipeline]) -> tuple[str, ...]:
    more = [
        f"{name}: {folder.origin} {folder.revision}"
        for name, folder in folders.items()
        if name != BASE and folder.origin != "random"
    ]
    return ("no safety checker and no watermark", *more)
