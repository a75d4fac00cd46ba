"""Graphs of unCLIP: text encoder, prior, what the decoder is told, decoder, both super-resolution models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from vlrt_export.clip_prompt import clip_prompt_graph
from vlrt_export.clip_vision import clip_vision_graph
from vlrt_export.graph import Graph
from vlrt_export.modules.diffusion_unet import BIAS, CLASS
from vlrt_export.modules.prior import Prior, PriorEmbedding, PriorPrompt, PriorStep
from vlrt_export.modules.unclip import GuidedText, UnguidedText
from vlrt_export.unclip_parts import Parts
from vlrt_export.unet_graphs import Condition, UNetGraphs

TEXT, IMAGE = "text_encoder", "image_encoder"
PRIOR, PRIOR_PROMPT, PRIOR_EMBEDDING = "prior", "prior_prompt", "prior_embedding"
DECODER, GUIDED, UNGUIDED, PROJECTION = "decoder", "decoder_text", "decoder_text_unguided", "decoder_projection"
SUPER, SUPER_LAST = "super_resolution", "super_resolution_last"

MASK, STATES, TEXT_EMBEDDING, IMAGE_EMBEDDING = "prompt_mask", "prompt_states", "text_embedding", "image_embedding"
LOW, DECODER_STATES, PRIOR_BIAS = "low_resolution", "decoder_states", "prior_bias"

_CASES = ((2, 3), (1, 2), (4, 5))
"""Rows, and tokens of their prompts, that graphs are proved on."""


def graphs(parts: Parts, tolerance: float) -> list[Graph]:
    """All graphs of a bundle."""
    found = [clip_prompt_graph(parts.text, TEXT, (STATES, TEXT_EMBEDDING), tolerance)]
    if parts.image_encoder is not None:
        patch, positions = parts.image_encoder.conv1.kernel_size[0], len(parts.image_encoder.positional_embedding)
        size = patch * round((positions - 1) ** 0.5)
        found.append(clip_vision_graph(parts.image_encoder, size, IMAGE, tolerance))
    if parts.prior is not None:
        found += prior_graphs(parts.prior, tolerance)
    return [*found, *_decoder_graphs(parts, tolerance), *_super_graphs(parts, tolerance)]


def prior_memory(layers: int) -> tuple[str, ...]:
    """Names of what the prior's steps read of a sentence."""
    return (PRIOR_BIAS, *(f"prior_{kind}.{layer}" for kind in ("key", "value") for layer in range(layers)))


def prior_graphs(prior: Prior, tolerance: float) -> Iterator[Graph]:
    """What is constant of a sentence, one step, and the way back to CLIP's embeddings."""
    names = prior_memory(prior.sizes.layers)
    prompts = [_prompt(rows, prior.sizes.text, prior.sizes.embedding) for rows, _ in _CASES]
    yield _by_rows(PRIOR_PROMPT, PriorPrompt(prior), prompts, names, "batch", tolerance)
    steps = []
    for prompt in prompts:
        rows = len(prompt[MASK])
        generator = torch.Generator().manual_seed(rows)
        case = {"sample": torch.randn(rows, prior.sizes.embedding, generator=generator)}
        case["timestep"] = torch.randint(0, 1000, (rows,), generator=generator).float()
        with torch.no_grad():
            memory = [tensor.contiguous() for tensor in PriorPrompt(prior)(*prompt.values())]
        steps.append(case | dict(zip(names, memory)))
    yield _by_rows(PRIOR, PriorStep(prior), steps, ("prediction",), "rows", tolerance)
    latents = [{"latents": case["sample"]} for case in steps]
    yield _by_rows(PRIOR_EMBEDDING, PriorEmbedding(prior), latents, (IMAGE_EMBEDDING,), "batch", tolerance)


def _decoder_graphs(parts: Parts, tolerance: float) -> Iterator[Graph]:
    text = parts.decoder_text
    outputs = (DECODER_STATES, CLASS, BIAS)
    axes = {DECODER_STATES: {1: "states"}, BIAS: {1: "states"}}
    guided = [_prompt(rows, length, text.sizes.embedding, image=True) for rows, length in _CASES]
    unguided = [{name: value for name, value in case.items() if name != IMAGE_EMBEDDING} for case in guided]
    for role, module, cases in ((GUIDED, GuidedText(text), guided), (UNGUIDED, UnguidedText(text), unguided)):
        yield _by_rows(role, module, cases, outputs, "batch", tolerance, axes)
    unet = parts.decoder
    yield from UNetGraphs(
        unet,
        channels=int(unet.config.in_channels),
        conditions={CLASS: Condition((text.sizes.time,)), BIAS: Condition()},
        prompt=text.sizes.states,
        denoiser=DECODER,
        projection=PROJECTION,
        states=DECODER_STATES,
        tolerance=tolerance,
    ).graphs()


def _super_graphs(parts: Parts, tolerance: float) -> Iterator[Graph]:
    for role, unet in ((SUPER, parts.super_first), (SUPER_LAST, parts.super_last)):
        channels = int(unet.config.in_channels) // 2
        yield from UNetGraphs(
            unet, channels, {LOW: Condition((channels,))}, denoiser=role, tolerance=tolerance
        ).graphs()


def _prompt(rows: int, length: int, width: int, image: bool = False) -> dict[str, Tensor]:
    """A random prompt whose rows end at different places."""
    generator = torch.Generator().manual_seed(10 * rows + length)
    ends = torch.tensor([max(1, length - row) for row in range(rows)])
    case = {
        STATES: torch.randn(rows, length, width, generator=generator),
        TEXT_EMBEDDING: torch.randn(rows, width, generator=generator),
    }
    if image:
        case[IMAGE_EMBEDDING] = torch.randn(rows, width, generator=generator)
    case[MASK] = (torch.arange(length) < ends[:, None]).long()
    return case


def _by_rows(
    role: str,
    module: nn.Module,
    cases: list[dict[str, Tensor]],
    outputs: tuple[str, ...],
    rows: str,
    tolerance: float,
    output_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> Graph:
    """A graph whose inputs and outputs have one row each; prompts may have any length where the cases have."""
    lengths = {case[STATES].shape[1] for case in cases if STATES in case}
    axes = {0: rows} if len(lengths) < 2 else {0: rows, 1: "length"}
    dynamic = {name: axes if name in (STATES, MASK) else {0: rows} for name in cases[0]}
    return Graph(
        role=role,
        module=module.eval(),
        inputs=cases[0],
        outputs=outputs,
        dynamic=dynamic,
        output_axes={name: {0: rows, **(output_axes or {}).get(name, {})} for name in outputs},
        cases=cases[1:],
        tolerance=tolerance,
    )
