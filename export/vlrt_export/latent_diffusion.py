"""A UNet over the latents of an autoencoder: its graphs and its section of the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlrt.diffusion_sections import InpaintSpec, LowResolutionSpec, ScheduleSpec, StageSpec
from vlrt.errors import VlrtError
from vlrt_export import autoencoder_graphs
from vlrt_export.consistency_decoder import LATENTS, decoder_graphs, decoder_stage
from vlrt_export.diffusers_schedule import LATENT_RULES, Sampling
from vlrt_export.graph import Graph
from vlrt_export.modules.diffusion_unet import CLASS, GUIDANCE
from vlrt_export.unet_graphs import Condition, UNetGraphs

TEXT, INPAINT, UPSCALE = "text", "inpaint", "upscale"
STAGE, DENOISER, PROJECTION = "latent", "denoiser", "prompt_projection"
MASK, MASKED, LOW = "mask", "masked_latents", "low_resolution"

TASKS = {TEXT: ("generate", "edit", "inpaint"), INPAINT: ("inpaint",), UPSCALE: ("upscale",)}
_DEFAULTS = {TEXT: (50, 7.5), INPAINT: (50, 7.5), UPSCALE: (75, 9.0)}
"""Steps and guidance of diffusers' pipelines."""

_DISTILLED = (4, 8.5)
_NOISE_LEVEL = 20


@dataclass(frozen=True)
class LatentModel:
    """A denoiser of latents with its autoencoder.

    Args:
        unet: diffusers' `UNet2DConditionModel`.
        autoencoder: its `AutoencoderKL` or `VQModel`, or a `ConsistencyDecoderVAE` in its place.
        sampling: the checkpoint's own schedule and rule.
        noise: schedule of the noise on an upscaler's small picture.
        previews: the autoencoder that previews are fitted to; `autoencoder` where `None`.
    """

    unet: Any
    autoencoder: Any
    sampling: Sampling
    noise: ScheduleSpec | None = None
    previews: Any = None

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.autoencoder.config.latent_channels)

    @property
    def kind(self) -> str:
        """What the UNet was trained for, as its input channels tell.

        Raises:
            VlrtError: channels that no known model has.
        """
        extra = self.unet.config.in_channels - self.channels
        kinds = {0: TEXT, self.channels + 1: INPAINT, 3: UPSCALE}
        if extra not in kinds:
            what = f"the UNet takes {self.unet.config.in_channels} channels for latents of {self.channels}"
            raise VlrtError(what, "known are text to image, inpainting and upscaling models")
        return kinds[extra]

    @property
    def scale(self) -> float:
        """What latents are multiplied with before they are noised."""
        return float(self.autoencoder.config.scaling_factor)

    @property
    def distilled(self) -> int:
        """Width of the embedding of guidance in a latent consistency model; 0 for others."""
        return int(self.unet.config.get("time_cond_proj_dim") or 0)

    def conditions(self) -> Mapping[str, Condition]:
        """Further inputs of the denoiser, in the order their channels are joined."""
        found: dict[str, Condition] = {GUIDANCE: Condition((self.distilled,))} if self.distilled else {}
        if self.unet.config.num_class_embeds:
            found[CLASS] = Condition(below=self.unet.config.num_class_embeds)
        if self.kind == INPAINT:
            found |= {MASK: Condition((1,)), MASKED: Condition((self.channels,))}
        if self.kind == UPSCALE:
            found[LOW] = Condition((3,))
        return found

    def graphs(self, tolerance: float, encodes: bool = True) -> tuple[Graph, ...]:
        """Projection of the prompt, denoiser, decoder and, where `encodes`, encoder."""
        unet = UNetGraphs(
            self.unet,
            self.channels,
            self.conditions(),
            prompt=int(self.unet.config.cross_attention_dim),
            denoiser=DENOISER,
            projection=PROJECTION,
            tolerance=tolerance,
        )
        decoder = (
            decoder_graphs(self.autoencoder, tolerance)
            if self.consistency
            else (autoencoder_graphs.decoder_graph(self.autoencoder, tolerance),)
        )
        encoder = (autoencoder_graphs.encoder_graph(self.autoencoder, tolerance),) if encodes else ()
        return (*unet.graphs(), *decoder, *encoder)

    def stages(self) -> tuple[StageSpec, ...]:
        """The denoiser's stage and, with a consistency decoder, that one's."""
        stage = self.stage()
        if not self.consistency:
            return (stage,)
        return stage, decoder_stage(self.autoencoder, *stage.shape[1:])

    @property
    def consistency(self) -> bool:
        """Whether latents are decoded by a denoiser of its own."""
        return hasattr(self.autoencoder, "decoder_unet")

    def stage(self) -> StageSpec:
        """The denoiser's stage, with the pipeline's defaults."""
        steps, guidance = _DISTILLED if self.distilled else _DEFAULTS[self.kind]
        size = self.unet.config.sample_size or 64
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        rule = self.sampling.rule
        further = tuple(name for name in LATENT_RULES if name != rule) if rule in LATENT_RULES else ()
        return StageSpec(
            name=STAGE,
            denoiser=DENOISER,
            shape=(self.channels, int(height), int(width)),
            schedule=self.sampling.schedule,
            rule=rule,
            steps=min(steps, self.sampling.schedule.train_steps),
            guidance=guidance,
            rules=further,
            schedules=self.sampling.schedules(further),
            prepare=(PROJECTION,),
            output=LATENTS if self.consistency else "picture",
            finish=() if self.consistency else (autoencoder_graphs.DECODER,),
            factor=autoencoder_graphs.factor(self.autoencoder),
            multiple=1 << (len(self.unet.config.block_out_channels) - 1),
            low_resolution=self._low_resolution(),
            latent_scale=self.scale,
            preview=autoencoder_graphs.preview_map(self.previews or self.autoencoder, self.scale),
            guidance_embedding=GUIDANCE if self.distilled else "",
            guidance_width=self.distilled,
            tile=int(getattr(self.autoencoder, "tile_latent_min_size", 0)),
        )

    def inpaint(self) -> dict[str, InpaintSpec]:
        """How inpainting keeps what the mask does not cover, by stage."""
        if self.kind == INPAINT:
            return {STAGE: InpaintSpec("channels", MASK, MASKED)}
        return {STAGE: InpaintSpec("blend")} if self.kind == TEXT else {}

    def _low_resolution(self) -> LowResolutionSpec | None:
        if self.kind != UPSCALE:
            return None
        level = min(_NOISE_LEVEL, int(self.unet.config.num_class_embeds or 1) - 1)
        return LowResolutionSpec(
            source="picture",
            input=LOW,
            noise_level=level,
            noise_schedule=self.noise,
            noise_input=CLASS if self.unet.config.num_class_embeds else "",
            drawn="before",
        )
