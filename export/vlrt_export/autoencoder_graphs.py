"""Graphs of an autoencoder, its scale, and a linear preview of what it decodes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from vlrt_export.graph import Graph
from vlrt_export.modules.diffusion_autoencoder import LatentDecoder, LatentEncoder

DECODER, ENCODER = "latent_decoder", "latent_encoder"
_SMALL = ((2, 4, 6), (1, 6, 4), (3, 4, 4))
"""Pictures, rows and columns of latents that the graphs are proved on."""

_PREVIEWED = (4, 16, 16)


def factor(autoencoder: Any) -> int:
    """Pixels of a picture per row and column of its latents."""
    return 1 << (len(autoencoder.config.block_out_channels) - 1)


def decoder_graph(autoencoder: Any, tolerance: float) -> Graph:
    """Latents [N, C, h, w] to the picture [N, 3, H, W]."""
    many = factor(autoencoder)
    cases = [{"latents": _latents(autoencoder, *shape)} for shape in _SMALL]
    return Graph(
        role=DECODER,
        module=LatentDecoder(autoencoder).eval(),
        inputs=cases[0],
        outputs=("picture",),
        dynamic={"latents": {0: "batch", 2: "height", 3: "width"}},
        output_axes={"picture": {0: "batch", 2: f"{many}*height", 3: f"{many}*width"}},
        cases=cases[1:],
        tolerance=tolerance,
    )


def encoder_graph(autoencoder: Any, tolerance: float) -> Graph:
    """A picture [N, 3, H, W] to mean and standard deviation of its latents [N, C, h, w]."""
    many = factor(autoencoder)
    generator = torch.Generator().manual_seed(0)
    cases = [{"picture": torch.rand(n, 3, h * many, w * many, generator=generator) * 2 - 1} for n, h, w in _SMALL]
    names = ("latent_mean", "latent_std")
    return Graph(
        role=ENCODER,
        module=LatentEncoder(autoencoder).eval(),
        inputs=cases[0],
        outputs=names,
        dynamic={"picture": {0: "batch", 2: f"{many}*height", 3: f"{many}*width"}},
        output_axes={name: {0: "batch", 2: "height", 3: "width"} for name in names},
        cases=cases[1:],
        tolerance=tolerance,
    )


def preview_map(autoencoder: Any, scale: float) -> tuple[tuple[float, float, float], ...]:
    """The linear map [C, 3] from scaled latents to RGB in −1 to 1 that errs least on decoded random latents.

    Args:
        scale: what latents of the denoiser are divided with before they are decoded.
    """
    latents = _latents(autoencoder, *_PREVIEWED)
    # Neighbouring latents of pictures are alike; those of plain noise decode to nothing a picture has.
    latents = latents + 2 * F.interpolate(F.avg_pool2d(latents, 4), scale_factor=4.0, mode="bilinear")
    with torch.no_grad():
        picture = LatentDecoder(autoencoder).eval()(latents / scale)
    colours = F.avg_pool2d(picture.clamp(-1, 1), factor(autoencoder))
    x, y = (t.permute(0, 2, 3, 1).flatten(0, 2).double() for t in (latents, colours))
    found = torch.linalg.lstsq(x, y).solution
    return tuple((float(r), float(g), float(b)) for r, g, b in found.tolist())


def _latents(autoencoder: Any, batch: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * batch + height)
    return torch.randn(batch, autoencoder.config.latent_channels, height, width, generator=generator)
