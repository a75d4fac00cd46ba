"""The stages of an Imagen-like cascade: pixels at two sizes, and a latent upscaler as the last one."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

from vlrt.diffusion_sections import LowResolutionSpec, PromptSpec, StageSpec
from vlrt.errors import VlrtError
from vlrt_export.clip_prompt import clip_prompt_graph, load_clip_prompt
from vlrt_export.clip_tokenizer import FILE, find_tokenizer
from vlrt_export.diffusers_folder import Pipeline
from vlrt_export.diffusers_schedule import Sampling, read_schedule
from vlrt_export.graph import Graph
from vlrt_export.latent_diffusion import UPSCALE, LatentModel
from vlrt_export.modules.clip_prompt import ClipPrompt
from vlrt_export.modules.diffusion_unet import CLASS
from vlrt_export.unet_graphs import STATES as LATENT_STATES
from vlrt_export.unet_graphs import Condition, UNetGraphs

BASE, SUPER, UPSCALER = "base", "super_resolution", "upscaler"
T5, T5_IDS, MASK, STATES = "t5_encoder", "t5_ids", "t5_mask", "t5_states"
LOW = "super_low_resolution"
_CLIP, _CLIP_IDS, _CLIP_TOKENIZER = "upscaler_text_encoder", "upscaler_ids", f"upscaler_{FILE}"

_DEFAULTS = {BASE: (100, 7.0), SUPER: (50, 4.0)}
"""Steps and guidance of diffusers' pipelines."""

_SUPER_NOISE, _UPSCALER_NOISE = 250, 100
"""Timestep of the noise on the smaller picture: the pipeline's default, and that of IF's documentation."""

_RULES = ("ddim", "dpm++2m")


class PixelStage:
    """A denoiser of pixels under T5's states.

    Args:
        name: `BASE`, or `SUPER` for one that enlarges the picture before it.

    Raises:
        VlrtError: the UNet's channels are not those of the stage.
    """

    def __init__(self, name: str, pipeline: Pipeline) -> None:
        self.name, self.pipeline = name, pipeline
        self.unet: Any = pipeline["unet"].model()
        self.channels = int(self.unet.config.out_channels) // 2
        expected = self.channels * (2 if name == SUPER else 1)
        if int(self.unet.config.in_channels) != expected:
            what = f"`{pipeline.origin}` takes {self.unet.config.in_channels} channels, the stage {name} {expected}"
            raise VlrtError(what, "give the first stage as the source and the second with `--super-resolution`")

    @property
    def output(self) -> str:
        """Name of its picture."""
        return f"{self.name}_picture"

    @cached_property
    def sampling(self) -> Sampling:
        """Schedule and rule."""
        return _sampling(self.pipeline, "scheduler", {"variance_type": "learned_range"})

    def graphs(self, states: int, tolerance: float) -> tuple[Graph, ...]:
        """Projection of the prompt and denoiser; `states` is the width of T5's."""
        return self._builder(states, tolerance).graphs()

    def _builder(self, states: int, tolerance: float) -> UNetGraphs:
        conditions: dict[str, Condition] = {}
        if self.name == SUPER:
            conditions = {LOW: Condition((self.channels,)), CLASS: Condition(below=1000)}
        return UNetGraphs(
            self.unet,
            self.channels,
            conditions,
            prompt=states,
            denoiser=self.name,
            projection=f"{self.name}_prompt",
            prefix=f"{self.name}_",
            states=STATES,
            tolerance=tolerance,
        )

    def spec(self) -> StageSpec:
        """The stage with the pipeline's defaults."""
        steps, guidance = _DEFAULTS[self.name]
        size = self.unet.config.sample_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        further = _RULES if self.sampling.rule == "ddpm" else ()
        return StageSpec(
            name=self.name,
            denoiser=self.name,
            shape=(self.channels, int(height), int(width)),
            schedule=self.sampling.schedule,
            rule=self.sampling.rule,
            rules=further,
            schedules=self.sampling.schedules(further),
            steps=min(steps, self.sampling.schedule.train_steps),
            guidance=guidance,
            prepare=(f"{self.name}_prompt",),
            output=self.output,
            multiple=self._builder(1, 0.0).multiple,
            low_resolution=self._low_resolution(),
        )

    def _low_resolution(self) -> LowResolutionSpec | None:
        if self.name != SUPER:
            return None
        noise = _sampling(self.pipeline, "image_noising_scheduler", {}).schedule
        level = min(_SUPER_NOISE, noise.train_steps - 1)
        return LowResolutionSpec(f"{BASE}_picture", LOW, "bilinear_aligned", level, noise, CLASS)


class Upscaler:
    """Stable Diffusion's x4 upscaler behind a stage of pixels.

    Raises:
        VlrtError: the pipeline is another one.
    """

    def __init__(self, pipeline: Pipeline, before: PixelStage) -> None:
        self.before = before
        noise = read_schedule(pipeline["low_res_scheduler"].config).schedule
        sampling = _sampling(pipeline, "scheduler", {})
        self.model = LatentModel(pipeline["unet"].model(), pipeline["vae"].model(), sampling, noise)
        if self.model.kind != UPSCALE:
            raise VlrtError(f"`{pipeline.origin}` is no upscaler", "give Stable Diffusion's x4 upscaler")
        text = pipeline["text_encoder"]
        if text.checkpoint is None:
            raise VlrtError(f"`{text.where}` has no weights", "download the folder again")
        self.text: ClipPrompt = load_clip_prompt(text.config, text.checkpoint.tensors, text.where)
        self.tokenizer = find_tokenizer(None, str(pipeline["tokenizer"].folder))

    def graphs(self, tolerance: float) -> tuple[Graph, ...]:
        """Text encoder, projection, denoiser and decoder."""
        text = clip_prompt_graph(self.text, _CLIP, (LATENT_STATES,), tolerance, ids=_CLIP_IDS)
        return (text, *self.model.graphs(tolerance, encodes=False))

    def prompt(self) -> PromptSpec:
        """How it reads a prompt: by CLIP, not by T5."""
        words = self.tokenizer.text_spec(self.text.sizes.context, self.text.sizes.vocabulary)
        words = replace(words, tokenizer=_CLIP_TOKENIZER, input=_CLIP_IDS, pad_to_context=True)
        return PromptSpec(words, (_CLIP,))

    def files(self) -> dict[str, bytes]:
        """Its tokenizer."""
        return {_CLIP_TOKENIZER: self.tokenizer.json()}

    def spec(self) -> StageSpec:
        """The stage; as large as the picture before it."""
        stage, before = self.model.stage(), self.before.spec()
        low = stage.low_resolution
        if low is None or not self.model.unet.config.num_class_embeds:
            raise VlrtError("the upscaler takes no level of noise", "give Stable Diffusion's x4 upscaler")
        level = min(_UPSCALER_NOISE, int(self.model.unet.config.num_class_embeds) - 1)
        return replace(
            stage,
            name=UPSCALER,
            shape=(stage.shape[0], *before.shape[1:]),
            low_resolution=replace(low, source=self.before.output, noise_level=level),
        )


def _sampling(pipeline: Pipeline, name: str, missing: dict[str, Any]) -> Sampling:
    """A scheduler's schedule; IF's own where random weights have none."""
    if name in pipeline:
        component = pipeline[name]
        return read_schedule({"_class_name": component.kind, **component.config}, name)
    if pipeline.origin != "random":
        raise VlrtError(f"`{pipeline.origin}` has no `{name}`", "give a pipeline of IF")
    thresholds = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5}
    config = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", **thresholds, **missing}
    return read_schedule(config, name)
