"""The consistency decoder: latents to a picture in two steps of a denoiser of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt.diffusion_sections import StageSpec
from vlrt.errors import VlrtError
from vlrt_export.checkpoints import open_checkpoint
from vlrt_export.diffusers_folder import Component
from vlrt_export.diffusers_schedule import read_schedule
from vlrt_export.graph import Graph
from vlrt_export.unet_graphs import Condition, UNetGraphs

STAGE, DENOISER, CONDITION = "decode", "decoder_denoiser", "latent_condition"
LATENTS, ENLARGED = "latents", "enlarged_latents"
PUBLISHED = "openai/consistency-decoder"
_KIND = "ConsistencyDecoderVAE"
_DERIVED = ("block_out_channels", "force_upcast")
_STEPS = 2


def load_decoder(source: str) -> Any:
    """Diffusers' `ConsistencyDecoderVAE` with the weights of a folder or hub id; ``consistency`` is the published one.

    Raises:
        VlrtError: no such checkpoint, or another model.
    """
    import diffusers

    opened = open_checkpoint(PUBLISHED if source == "consistency" else str(Path(source).expanduser()))
    if opened.config.get("_class_name") != _KIND:
        what = f"`{opened.origin}` is a `{opened.config.get('_class_name')}`, expected `{_KIND}`"
        raise VlrtError(what, f"`--decoder {PUBLISHED}`, or a folder in its layout")
    config = {name: value for name, value in opened.config.items() if name not in _DERIVED}
    made = Component(opened.origin, _KIND, config, opened).model()
    # Constants of the class itself, which a model that is built without memory has not.
    sizes = {"encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4}
    small = diffusers.ConsistencyDecoderVAE(**sizes)
    made.means, made.stds, made.decoder_scheduler = small.means, small.stds, small.decoder_scheduler
    return made


class LatentCondition(nn.Module):
    """Latents [N, C, h, w], normalised and enlarged to the picture's size: [N, C, H, W].

    Source: reproduces the beginning of ``ConsistencyDecoderVAE.decode``.
    """

    means: Tensor
    deviations: Tensor

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.factor = 1 << (len(autoencoder.config.block_out_channels) - 1)
        self.register_buffer("means", autoencoder.means.clone(), persistent=False)
        self.register_buffer("deviations", autoencoder.stds.clone(), persistent=False)

    def forward(self, latents: Tensor) -> Tensor:
        normal = (latents - self.means) / self.deviations
        return F.interpolate(normal, scale_factor=float(self.factor), mode="nearest")


def decoder_graphs(autoencoder: Any, tolerance: float) -> tuple[Graph, ...]:
    """What is run once on the latents, and the denoiser of pixels."""
    unet, channels = autoencoder.decoder_unet, autoencoder.config.latent_channels
    denoiser = UNetGraphs(
        unet, 3, {ENLARGED: Condition((channels,))}, denoiser=DENOISER, tolerance=tolerance, predicted=3
    )
    module = LatentCondition(autoencoder).eval()
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, channels, 2, 3), (1, channels, 3, 2))
    cases = [{LATENTS: torch.randn(*shape, generator=generator)} for shape in shapes]
    axes = {0: "batch", 2: f"{module.factor}*height", 3: f"{module.factor}*width"}
    condition = Graph(
        role=CONDITION,
        module=module,
        inputs=cases[0],
        outputs=(ENLARGED,),
        dynamic={LATENTS: {0: "batch", 2: "height", 3: "width"}},
        output_axes={ENLARGED: axes},
        cases=cases[1:],
        tolerance=tolerance,
    )
    return condition, *denoiser.graphs()


def decoder_stage(autoencoder: Any, height: int, width: int) -> StageSpec:
    """The stage that paints a picture of latents; its two steps are those it was trained for.

    Args:
        height, width: of the latents at the default size.
    """
    factor = 1 << (len(autoencoder.config.block_out_channels) - 1)
    sampling = read_schedule({"_class_name": "ConsistencyDecoderScheduler"})
    return StageSpec(
        name=STAGE,
        denoiser=DENOISER,
        shape=(3, factor * height, factor * width),
        schedule=sampling.schedule,
        rule=sampling.rule,
        steps=_STEPS,
        prepare=(CONDITION,),
        multiple=1 << (len(autoencoder.decoder_unet.config.block_out_channels) - 1),
    )
