"""A bundle's codec: photographs to grids of codes, and grids of codes to pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions, Sessions
from vlrt.errors import BundleError, ImageError, UsageError, VlrtWarning
from vlrt.manifest import CodecSpec

Codes = NDArray[np.int64]
Pixels = NDArray[np.float32]


class PictureCutWarning(VlrtWarning):
    """A photograph lost a margin, since its size is no whole number of codes."""


class PictureCodec:
    """The tokenizer and the detokenizer of a bundle.

    Args:
        bundle: one with a codec section.
        options: device and threads.
        sessions: of the bundle, where there are some already.

    Raises:
        BundleError: the bundle has no codec.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None, sessions: Sessions | None = None) -> None:
        if bundle.manifest.codec is None:
            raise BundleError(f"the bundle `{bundle.name}` has no codec of pictures", "choose another with `--model`")
        self.bundle = bundle
        self.spec: CodecSpec = bundle.manifest.codec
        self.sessions = sessions or Sessions(bundle, options)

    def prepare(self) -> None:
        """Starts loading both graphs."""
        self.sessions.prepare(self.spec.roles)

    def fit(self, picture: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
        """A photograph cut to whole codes.

        Args:
            picture: RGB.
            size: height and width in pixels that it is scaled to cover and then cut to; the size that the codec was
                trained on where `None`, or the photograph's own, less what is no whole code at its margins.

        Raises:
            UsageError: a size that is no whole number of codes, or that the graphs do not take.
            ImageError: the picture is smaller than one code, or has more codes than a computer can hold.
        """
        if size is None and self.spec.grid is None:
            return self._cut(picture)
        wanted = self._check_size(size) if size else self._trained_size()
        scale = max(wanted[0] / picture.height, wanted[1] / picture.width)
        width, height = (max(side, round(scale * length)) for side, length in zip(wanted[::-1], picture.size))
        left, top = (width - wanted[1]) // 2, (height - wanted[0]) // 2
        scaled = picture.resize((width, height), Image.Resampling.LANCZOS)
        return scaled.crop((left, top, left + wanted[1], top + wanted[0]))

    def pixels(self, pictures: Sequence[Image.Image]) -> Pixels:
        """Pixels in [0, 1] of RGB pictures of one size: float32 [N, 3, H, W]."""
        values = np.stack([np.asarray(picture, dtype=np.uint8) for picture in pictures])
        return np.ascontiguousarray((values.astype(np.float32) / 255).transpose(0, 3, 1, 2))

    def encode(self, pictures: Sequence[Image.Image]) -> Codes:
        """Codes of RGB pictures of one size of whole codes: int64 [N, rows, columns].

        Raises:
            BundleError: the bundle can only paint.
        """
        if not self.spec.tokenizer:
            what = f"the bundle `{self.bundle.name}` has no tokenizer: it turns codes into pictures only"
            raise BundleError(what, "choose a codec with both halves with `--model`")
        outputs = self.sessions.run_chain((self.spec.tokenizer,), {self.spec.pixels: self.pixels(pictures)})
        codes: Codes = outputs[self.output(self.spec.tokenizer)]
        return codes

    def decode(self, codes: Codes) -> Pixels:
        """Pixels in [0, 1] of codes [N, rows, columns]: float32 [N, 3, H, W].

        Raises:
            UsageError: codes outside the codebook, or a grid that the graphs do not take.
            BundleError: the bundle can only read pictures.
        """
        self.check_codes(codes)
        if not self.spec.detokenizer:
            raise BundleError(f"the bundle `{self.bundle.name}` has no detokenizer", "choose another with `--model`")
        outputs = self.sessions.run_chain((self.spec.detokenizer,), {self.spec.tokens: codes.astype(np.int64)})
        pixels: Pixels = outputs[self.output(self.spec.detokenizer)]
        return pixels

    def pictures(self, codes: Codes) -> list[Image.Image]:
        """As `decode`, as RGB pictures."""
        return as_pictures(self.decode(codes))

    def check_codes(self, codes: Codes) -> None:
        """Raises `UsageError` unless the codec has these codes, in a grid that it takes."""
        if codes.ndim != 3 or not codes.size or not np.issubdtype(codes.dtype, np.integer):
            what = f"codes of shape {list(codes.shape)} and dtype `{codes.dtype}` are no grid"
            raise UsageError(what, "expected whole numbers [rows, columns]")
        if codes.min() < 0 or codes.max() >= self.spec.codebook:
            wrong = int(codes.min() if codes.min() < 0 else codes.max())
            what = f"the code {wrong} is outside the codebook of {self.spec.codebook} codes of `{self.bundle.name}`"
            raise UsageError(what, "decode with the bundle that made the codes")
        grid = (codes.shape[1], codes.shape[2])
        if self.spec.fixed and grid != self.spec.grid:
            taken = " x ".join(map(str, self.spec.grid or ()))
            raise UsageError(f"`{self.bundle.name}` takes grids of {taken} codes, got {grid[0]} x {grid[1]}")
        if grid[0] * grid[1] > self.spec.most_codes:
            raise UsageError(
                f"a grid of {grid[0]} x {grid[1]} codes is too large, at most {self.spec.most_codes:,} are decoded"
            )

    def output(self, role: str) -> str:
        """Name of a graph's output."""
        return self.bundle.manifest.graphs[role].outputs[0].name

    def _trained_size(self) -> tuple[int, int]:
        rows, columns = self.spec.grid or (1, 1)
        return rows * self.spec.factor, columns * self.spec.factor

    def _check_size(self, size: tuple[int, int]) -> tuple[int, int]:
        factor = self.spec.factor
        if self.spec.fixed and size != self._trained_size():
            taken = "x".join(map(str, self._trained_size()))
            raise UsageError(f"`{self.bundle.name}` takes pictures of {taken} pixels, got {size[0]}x{size[1]}")
        for side in size:
            if side < factor or side % factor:
                below = max(factor, side // factor * factor)
                near = f"{below} or {below + factor}" if side >= factor else f"{factor}"
                what = f"{side} pixels are no whole codes of {factor} pixels"
                raise UsageError(what, f"give {near}")
        if (size[0] // factor) * (size[1] // factor) > self.spec.most_codes:
            raise UsageError(f"a picture of {size[0]}x{size[1]} pixels has more than {self.spec.most_codes:,} codes")
        return size

    def _cut(self, picture: Image.Image) -> Image.Image:
        factor = self.spec.factor
        width, height = (side // factor * factor for side in picture.size)
        if not width or not height:
            what = f"the picture of {picture.width}x{picture.height} pixels is smaller than a code of {factor}x{factor}"
            raise ImageError(what, "scale it up first")
        if (width // factor) * (height // factor) > self.spec.most_codes:
            what = (
                f"the picture of {picture.width}x{picture.height} pixels has more than {self.spec.most_codes:,} codes"
            )
            raise ImageError(what, "`--size 512x512` scales and cuts it")
        if (width, height) == picture.size:
            return picture
        shown = f"a picture of {picture.width}x{picture.height} pixels was cut to {width}x{height}"
        told = f"{shown}: codes are {factor}x{factor}"
        warnings.warn(told, PictureCutWarning, stacklevel=3)
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))


def as_pictures(pixels: Pixels) -> list[Image.Image]:
    """RGB pictures of pixels [N, 3, H, W] in [0, 1], rounded to eight bits."""
    values = np.rint(pixels.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return [Image.fromarray(np.ascontiguousarray(value)) for value in values]
