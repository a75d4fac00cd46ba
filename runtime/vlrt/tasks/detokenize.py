"""Detokenizing: the picture of a grid of codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.codec import PictureCodec
from vlrt.engines import EngineOptions
from vlrt.errors import UsageError
from vlrt.token_grid import TokenGrid


class Detokenizer:
    """Turns codes into pictures with a bundle's codec.

    Args:
        bundle: one that serves ``detokenize``.
        options: device and threads.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        bundle.require("detokenize")
        self.codec = PictureCodec(bundle, options)
        self.codec.sessions.prepare((self.codec.spec.detokenizer,))

    def __call__(self, grid: TokenGrid | NDArray[np.int64]) -> Image.Image:
        """The picture, RGB.

        Args:
            grid: as `vlrt.tasks.tokenize.Tokenizer` gives it, or codes [rows, columns] alone.

        Raises:
            UsageError: codes outside the codebook, of another codebook, or a grid that the graphs do not take.
        """
        if isinstance(grid, np.ndarray):
            grid = TokenGrid(grid)
        spec, name = self.codec.spec, self.codec.bundle.name
        if grid.codebook not in (0, spec.codebook):
            maker = f" by `{grid.model}`" if grid.model else ""
            what = f"the codes were made{maker} with a codebook of {grid.codebook}, `{name}` has {spec.codebook}"
            raise UsageError(what, "choose the bundle that made them with `--model`")
        return self.codec.pictures(grid.codes[None])[0]
