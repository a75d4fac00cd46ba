"""Diffusers' autoencoders as graphs: pictures to the posterior of their latents, and latents to pictures."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from vlrt.errors import VlrtError
from vlrt_export.modules.diffusion_blocks import portable

_LOWEST, _HIGHEST = -30.0, 20.0
"""Bounds of the logarithm of a variance."""


class LatentDecoder(nn.Module):
    """Latents [N, C, h, w] to a picture [N, 3, H, W] in −1 to 1.

    Args:
        autoencoder: diffusers' `AutoencoderKL` or `VQModel`, whose codes are then the nearest ones; weights are shared.

    Raises:
        VlrtError: the autoencoder has parts that are not known.

    Source: reproduces the ``decode`` of the two classes.
    """

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        if autoencoder.config.get("norm_type", "group") != "group":
            raise VlrtError(f"an autoencoder with norms `{autoencoder.config.norm_type}` is not known")
        self.quantize = getattr(autoencoder, "quantize", None)
        self.codebook = None if self.quantize is None else autoencoder.quantize.embedding.weight
        self.conv: nn.Module | None = autoencoder.post_quant_conv
        self.decoder: Any = portable(autoencoder.decoder)
        self.quantize = None

    def forward(self, latents: Tensor) -> Tensor:
        x = latents if self.codebook is None else nearest_codes(latents, self.codebook)
        x = x if self.conv is None else self.conv(x)
        decoder = self.decoder
        x = decoder.mid_block(decoder.conv_in(x))
        for block in decoder.up_blocks:
            x = block(x)
        return cast(Tensor, decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x))))


class LatentEncoder(nn.Module):
    """A picture [N, 3, H, W] in −1 to 1 to mean and standard deviation [N, C, h, w] of its latents.

    Args:
        autoencoder: diffusers' `AutoencoderKL` or `ConsistencyDecoderVAE`; its weights are shared.

    Source: reproduces their ``encode`` and `DiagonalGaussianDistribution`.
    """

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.encoder: Any = portable(autoencoder.encoder)
        self.conv: nn.Module | None = autoencoder.quant_conv

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.encoder
        x = encoder.conv_in(picture)
        for block in encoder.down_blocks:
            x = block(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        mean, log_variance = (x if self.conv is None else self.conv(x)).chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance.clamp(_LOWEST, _HIGHEST))


def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """The nearest of the codes [K, C] at each place of latents [N, C, h, w]."""
    rows = latents.permute(0, 2, 3, 1)
    # |z|² is the same for all codes of a place.
    distances = (codebook**2).sum(1) - 2 * rows @ codebook.t()
    return codebook[distances.argmin(-1)].permute(0, 3, 1, 2)
