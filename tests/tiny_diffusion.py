"""Tiny diffusion bundles made with `onnx.helper`: latent diffusion, a cascade from an embedding, and classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_bundles import WORDS, GraphMaker, records, seal, tensor, tokenizer_json

from vlrt import manifest
from vlrt.bundle import Bundle
from vlrt.diffusion_sections import (
    DiffusionSpec,
    InpaintSpec,
    LowResolutionSpec,
    PromptSpec,
    ScheduleSpec,
    StageSpec,
)
from vlrt.engines import Sessions
from vlrt.manifest import GraphSpec, ImageSpec, Manifest, Source, TextSpec
from vlrt.verify import observe

CONTEXT, WIDTH, LATENT, SIDE, FACTOR = 8, 6, 4, 8, 2
TEXT = TextSpec("tokenizer.json", CONTEXT, len(WORDS), pad_id=0, start_id=1, end_id=2, pad_to_context=True)
SCHEDULE = ScheduleSpec("scaled_linear", 1000, 0.00085, 0.012, set_alpha_to_one=False, steps_offset=1)


def number(g: GraphMaker, value: float) -> str:
    return g.constant(np.array(value, np.float32))


def text_encoder() -> GraphMaker:
    """input_ids [N, 8] -> prompt_states [N, 8, 6], text_embedding [N, 6]."""
    outputs = [tensor("prompt_states", "batch", CONTEXT, WIDTH), tensor("text_embedding", "batch", WIDTH)]
    g = GraphMaker("text_encoder", [tensor("input_ids", "batch", CONTEXT, dtype="int64")], outputs, 1)
    g("Gather", g.weight(len(WORDS), WIDTH), "input_ids", to="prompt_states")
    g("ReduceMean", "prompt_states", g.constant([1]), keepdims=0, to="text_embedding")
    return g


def prompt_projection() -> GraphMaker:
    """prompt_states -> prompt_shift [N, 4]: what of the prompt does not change over the steps."""
    g = GraphMaker(
        "prompt_projection",
        [tensor("prompt_states", "batch", CONTEXT, WIDTH)],
        [tensor("prompt_shift", "batch", LATENT)],
        2,
    )
    mean = g("ReduceMean", "prompt_states", g.constant([1]), keepdims=0)
    g("MatMul", mean, g.weight(WIDTH, LATENT, scale=2.0), to="prompt_shift")
    return g


def denoiser(
    role: str, channels: int, given: dict[str, tuple[Any, ...]], seed: int, learned: bool = False, broken: bool = False
) -> GraphMaker:
    """sample [R, C, h, w], timestep [R], `given` -> prediction: a convolution of all, and of the time a sine.

    Args:
        given: further inputs, [R, C'] ones added to every pixel, [R, C', h, w] ones concatenated.
        broken: whether it gives NaN below timestep 500.
    """
    image = ("rows", channels, "height", "width")
    inputs = [tensor("sample", *image), tensor("timestep", "rows", dtype="int64")]
    inputs += [tensor(name, "rows", *shape) for name, shape in given.items() if name != "class_label"]
    inputs += [tensor("class_label", "rows", dtype="int64")] if "class_label" in given else []
    made = channels * (2 if learned else 1)
    g = GraphMaker(role, inputs, [tensor("prediction", "rows", made, "height", "width")], seed)
    pictures = [name for name, shape in given.items() if len(shape) == 3]
    mixed = g("Concat", "sample", *pictures, axis=1) if pictures else "sample"
    total = channels + sum(given[name][0] for name in pictures)
    found = g("Conv", mixed, g.weight(made, total, 3, 3, scale=0.3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    time = g("CastLike", "timestep", number(g, 0.0))
    if broken:
        time = g("Sqrt", g("Sub", time, number(g, 500.0)))
    time = g("Sin", g("Mul", time, number(g, 0.01)), to="time_sine")
    found = g("Add", found, g("Reshape", time, g.constant([-1, 1, 1, 1])))
    for name, shape in given.items():
        if name == "class_label":
            vectors = g("Gather", g.weight(5, made), name)
        elif len(shape) == 1:
            vectors = g("MatMul", name, g.weight(shape[0], made))
        else:
            continue
        found = g("Add", found, g("Reshape", vectors, g.constant([0, -1, 1, 1])))
    g("Mul", g("Tanh", found), number(g, 1.5), to="prediction")
    return g


def latent_decoder() -> GraphMaker:
    """latents [N, 4, h, w] -> picture [N, 3, 2h, 2w]."""
    g = GraphMaker(
        "latent_decoder", [tensor("latents", "batch", LATENT, "h", "w")], [tensor("picture", "batch", 3, "h2", "w2")], 4
    )
    smooth = g("Conv", "latents", g.weight(LATENT, LATENT, 3, 3, scale=0.3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    raw = g("ConvTranspose", smooth, g.weight(LATENT, 3, 2, 2, scale=0.4), kernel_shape=[2, 2], strides=[2, 2])
    g("Tanh", raw, to="picture")
    return g


def latent_encoder() -> GraphMaker:
    """picture [N, 3, 2h, 2w] -> latent_mean, latent_std [N, 4, h, w]."""
    outputs = [tensor(name, "batch", LATENT, "h", "w") for name in ("latent_mean", "latent_std")]
    g = GraphMaker("latent_encoder", [tensor("picture", "batch", 3, "h2", "w2")], outputs, 5)
    g("Conv", "picture", g.weight(LATENT, 3, 2, 2), kernel_shape=[2, 2], strides=[2, 2], to="latent_mean")
    spread = g("Conv", "picture", g.weight(LATENT, 3, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    g("Sigmoid", spread, to="latent_std")
    return g


def image_encoder() -> GraphMaker:
    """pixels [N, 3, 8, 8] -> image_embedding [N, 6]."""
    g = GraphMaker(
        "image_encoder", [tensor("pixels", "batch", 3, 8, 8)], [tensor("image_embedding", "batch", WIDTH)], 6
    )
    g("MatMul", g("ReduceMean", "pixels", g.constant([2, 3]), keepdims=0), g.weight(3, WIDTH), to="image_embedding")
    return g


def prior() -> GraphMaker:
    """sample [R, 6], timestep [R], text_embedding [R, 6] -> prediction [R, 6]: a clean embedding."""
    inputs = [
        tensor("sample", "rows", WIDTH),
        tensor("timestep", "rows", dtype="int64"),
        tensor("text_embedding", "rows", WIDTH),
    ]
    g = GraphMaker("prior", inputs, [tensor("prediction", "rows", WIDTH)], 7)
    mixed = g("Concat", "sample", "text_embedding", axis=1)
    g("Tanh", g("MatMul", mixed, g.weight(2 * WIDTH, WIDTH)), to="prediction")
    # The time is an input of every denoiser; this one ignores it.
    g("Identity", "timestep", to="unused")
    return g


def prior_finish() -> GraphMaker:
    """latents [N, 6] -> image_embedding [N, 6]."""
    g = GraphMaker("prior_finish", [tensor("latents", "batch", WIDTH)], [tensor("image_embedding", "batch", WIDTH)], 8)
    g("Mul", "latents", number(g, 1.25), to="image_embedding")
    return g


def _write(
    folder: Path, makers: list[GraphMaker], tasks: tuple[str, ...], spec: DiffusionSpec, goldens: bool = True
) -> Path:
    folder.mkdir(parents=True)
    graphs: dict[str, GraphSpec] = {maker.role: maker.save(folder) for maker in makers}
    (folder / "tokenizer.json").write_text(tokenizer_json(), "utf-8")
    source = Source("tests", "0", "Apache-2.0", "random weights")
    described = Manifest(manifest.SCHEMA, folder.name, "tiny", tasks, source, records(folder), graphs, diffusion=spec)
    described = seal(folder, described)
    if not goldens:
        return folder
    bundle = Bundle.open(folder)
    sessions = Sessions(bundle)
    (folder / "goldens.json").write_text(json.dumps(observe(bundle, sessions.run_chain, sessions)), "utf-8")
    seal(folder, described, goldens="goldens.json")
    return folder


def latent(folder: Path, inpaint: str = "blend", broken: bool = False, **stage: Any) -> Path:
    """Latent diffusion of 16x16 pixels with a prompt: generate, edit, inpaint.

    Args:
        inpaint: ``blend``, or ``channels`` for a denoiser that takes the mask.
        broken: whether the denoiser gives NaN below timestep 500; such a bundle has no goldens.
        stage: fields of the stage that differ.
    """
    given: dict[str, tuple[Any, ...]] = {"prompt_shift": (LATENT,)}
    if inpaint == "channels":
        given |= {"mask": (1, "height", "width"), "masked_latents": (LATENT, "height", "width")}
    makers = [
        text_encoder(),
        prompt_projection(),
        denoiser("unet", LATENT, given, 3, broken=broken),
        latent_decoder(),
        latent_encoder(),
    ]
    fields: dict[str, Any] = {
        "name": "latents",
        "denoiser": "unet",
        "shape": (LATENT, SIDE, SIDE),
        "schedule": SCHEDULE,
        "rule": "ddim",
        "steps": 6,
        "guidance": 5.0,
        "rules": ("ddpm", "euler", "euler-ancestral", "pndm", "dpm++2m"),
        "prepare": ("prompt_projection",),
        "finish": ("latent_decoder",),
        "factor": FACTOR,
        "multiple": 2,
        "latent_scale": 2.0,
        "tile": 8,
        "preview": ((0.3, 0.1, 0.0), (0.0, 0.3, 0.1), (0.1, 0.0, 0.3), (0.1, 0.1, 0.1)),
    }
    spec = DiffusionSpec(
        stages=(StageSpec(**{**fields, **stage}),),
        prompts=(PromptSpec(TEXT, ("text_encoder",)),),
        encode=("latent_encoder",),
        encode_scale=2.0,
        inpaint={"latents": InpaintSpec("blend")}
        if inpaint == "blend"
        else {"latents": InpaintSpec("channels", "mask", "masked_latents")},
        max_size=64,
    )
    tasks = ("inpaint",) if inpaint == "channels" else ("generate", "edit", "inpaint")
    return _write(folder, makers, tasks, spec, goldens=not broken)


def cascade(folder: Path) -> Path:
    """Prompt -> embedding -> 8x8 pixels -> 16x16: generate, variations, interpolate, upscale."""
    colours = ("height", "width")
    makers = [
        text_encoder(),
        image_encoder(),
        prior(),
        prior_finish(),
        denoiser("decoder", 3, {"image_embedding": (WIDTH,)}, 9, learned=True),
        denoiser("upsampler", 3, {"low": (3, *colours)}, 10),
        denoiser("upsampler_last", 3, {"low": (3, *colours)}, 11),
    ]
    low = LowResolutionSpec("small", "low", "bilinear_aligned", 50, ScheduleSpec("linear"), drawn="after")
    stages = (
        StageSpec(
            "prior", "prior", (WIDTH,), ScheduleSpec("squared_cosine", prediction="sample", variance="fixed_small_log"),
            "unclip", 4, "image_embedding", 3.0, finish=("prior_finish",), zeroed=("text_embedding",),
        ),
        StageSpec(
            "decoder", "decoder", (3, 8, 8), ScheduleSpec("linear", variance="learned_range", clip_sample=1.0), "ddpm",
            4, "small", 2.0, ("ddim",), zeroed=("image_embedding",),
        ),
        StageSpec(
            "upsampler", "upsampler", (3, 16, 16), ScheduleSpec("linear", clip_sample=1.0), "ddim", 3,
            low_resolution=low, last_denoiser="upsampler_last",
        ),
    )  # fmt: skip
    spec = DiffusionSpec(
        stages,
        prompts=(PromptSpec(TEXT, ("text_encoder",)),),
        image=ImageSpec((8, 8), (127.5,) * 3, (127.5,) * 3),
        image_chain=("image_encoder",),
        variation_start="decoder",
        upscale_start="upsampler",
    )
    return _write(folder, makers, ("generate", "variations", "interpolate", "upscale"), spec)


def classes(folder: Path) -> Path:
    """Pixels of 8x8 of one of five classes: generate."""
    stage = StageSpec("pixels", "unet", (3, 8, 8), ScheduleSpec(clip_sample=1.0), "ddim", 3, multiple=4)
    spec = DiffusionSpec((stage,), labels=("dog", "cat", "car", "boat", "tree"), label_input="class_label", max_size=16)
    return _write(folder, [denoiser("unet", 3, {"class_label": ()}, 12)], ("generate",), spec)


MAKERS: dict[str, Callable[[Path], Path]] = {"latent": latent, "cascade": cascade, "classes": classes}
