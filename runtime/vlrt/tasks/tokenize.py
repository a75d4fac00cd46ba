"""Tokenizing: a photograph as a grid of codes."""

from __future__ import annotations

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.codec import PictureCodec
from vlrt.engines import EngineOptions
from vlrt.image import ImageLike
from vlrt.token_grid import TokenGrid


class Tokenizer:
    """Turns photographs into codes with a bundle's codec.

    Args:
        bundle: one that serves ``tokenize``.
        options: device and threads.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require("tokenize")
        self.codec = PictureCodec(bundle, options)
        self.codec.sessions.prepare((self.codec.spec.tokenizer,))

    def __call__(self, photograph: ImageLike, size: tuple[int, int] | None = None) -> TokenGrid:
        """The photograph's codes.

        Args:
            size: height and width in pixels that the photograph is scaled to cover and then cut to; see
                `vlrt.codec.PictureCodec.fit`.

        Raises:
            ImageError: not a readable image, or one smaller than a code.
            UsageError: a size that is no whole number of codes.
        """
        fitted = self.codec.fit(pictures.load(photograph), size)
        spec = self.codec.spec
        return TokenGrid(self.codec.encode([fitted])[0], spec.codebook, spec.factor, self.codec.bundle.name)
