"""What every codec of pictures is made of: pixels to codes, codes to pixels, around networks of any kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn


@dataclass(frozen=True)
class PixelRange:
    """Where a network's pixels lie: ``value · scale + offset`` of values in [0, 1]."""

    scale: float = 1.0
    offset: float = 0.0


CENTRED = PixelRange(1.0, -0.5)
SIGNED = PixelRange(2.0, -1.0)
LOGIT_LAPLACE = PixelRange(0.8, 0.1)
"""Ramesh et al. (arXiv 2102.12092), appendix A.3, eps = 0.1: a logit-Laplace density has no mass at 0 and 1."""


class ImageTokenizer(nn.Module):
    """Pixels [N, 3, H, W] in [0, 1] to the codes [N, h, w] int64 of an encoder's outputs.

    Args:
        encoder: mapped pixels to [N, D, h, w]: vectors where there is a codebook, else a logit for each of D codes.
        pixels: the encoder's range.
        codebook: [K, D]; a code is the index of the nearest row, the first of several as near. The likeliest logit's
            index where ``None``.
    """

    def __init__(self, encoder: nn.Module, pixels: PixelRange, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.pixels = pixels
        self.codebook = None if codebook is None else nn.Parameter(codebook, requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.scores(pixels)
        return found.argmax(1) if self.codebook is None else found.argmin(1)

    def scores(self, pixels: Tensor) -> Tensor:
        """[N, K, h, w]: logits, or squared distances less what is the same for every code of a place."""
        states = self.encoder(pixels * self.pixels.scale + self.pixels.offset)
        if self.codebook is None:
            return cast(Tensor, states)
        lengths = self.codebook.square().sum(1)
        products = states.permute(0, 2, 3, 1) @ self.codebook.t()
        return cast(Tensor, (lengths - 2 * products).permute(0, 3, 1, 2))


class ImageDetokenizer(nn.Module):
    """Codes [N, h, w] to pixels [N, 3, H, W], clipped to [0, 1].

    Args:
        codebook: the vector of each code, [K, D].
        decoder: vectors [N, D, h, w] to pixels of its range.
        pixels: the decoder's range.
    """

    def __init__(self, codebook: Tensor, decoder: nn.Module, pixels: PixelRange) -> None:
        super().__init__()
        self.codebook = nn.Parameter(codebook, requires_grad=False)
        self.decoder = decoder
        self.pixels = pixels

    def forward(self, tokens: Tensor) -> Tensor:
        vectors = nn.functional.embedding(tokens, self.codebook).permute(0, 3, 1, 2)
        painted = self.decoder(vectors)
        return cast(Tensor, ((painted - self.pixels.offset) / self.pixels.scale).clamp(0.0, 1.0))
