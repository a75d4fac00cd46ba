"""The manifest's sections of pictures as tokens: codecs between pixels and codes, and decoders that write codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vlrt.sections import refuse

_MOST_TOKENS = 1 << 20


@dataclass(frozen=True)
class CodecSpec:
    """A codec between a photograph and a grid of codes.

    The tokenizer takes pixels [N, 3, H, W] in [0, 1] (each graph maps them to what its network was trained on) and
    gives codes [N, H / factor, W / factor] int64; the detokenizer takes codes and gives pixels [N, 3, H, W] in [0, 1].

    Args:
        codebook: number of codes; they are 0 to codebook − 1.
        width: length of a code's vector.
        factor: pixels along each side of what one code stands for.
        grid: rows and columns of codes of the pictures it was trained on, which a photograph is cut to; ``None``
            where photographs keep their size, rounded down to whole codes.
        fixed: whether the graphs take no other grid.
        most_codes: of one picture; beyond it, distances to the codebook or attention take gigabytes.
        tokenizer, detokenizer: roles of the graphs; empty where the bundle has only the other one.
        pixels, tokens: names of the tokenizer's input and the detokenizer's input.
    """

    codebook: int
    width: int
    factor: int
    grid: tuple[int, int] | None = None
    fixed: bool = False
    most_codes: int = 1 << 16
    tokenizer: str = "image_tokenizer"
    detokenizer: str = "image_detokenizer"
    pixels: str = "pixels"
    tokens: str = "tokens"

    def __post_init__(self) -> None:
        if not 0 < self.codebook <= 1 << 24 or not 0 < self.width <= 1 << 16 or not 0 < self.factor <= 256:
            what = f"{self.codebook} codes of {self.width} numbers for {self.factor} pixels a side"
            raise refuse(f"codec section: {what} cannot be meant")
        if not 0 < self.most_codes <= _MOST_TOKENS:
            raise refuse(f"codec section: {self.most_codes} codes for one picture cannot be meant")
        if not self.roles:
            raise refuse("codec section: needs a tokenizer or a detokenizer")
        if self.grid is not None:
            check_grid(self.grid, "codec")
        elif self.fixed:
            raise refuse("codec section: graphs of a fixed size need a grid")

    @property
    def roles(self) -> tuple[str, ...]:
        """The graphs that the bundle has of the two."""
        return tuple(filter(None, (self.tokenizer, self.detokenizer)))


@dataclass(frozen=True)
class ImageTokensSpec:
    """What the decode section's tokens are to a picture: its codes, row by row.

    Args:
        grid: rows and columns of codes.
        codebook: number of codes.
        first_id: id of code 0 in the decoder's vocabulary; the others follow.
        text: ``encoder``: the prompt's ids are an input of the decode section's chain, padded and between start and
            end as the text section says, and an empty text's are the unconditional ones.
    """

    grid: tuple[int, int]
    codebook: int
    first_id: int = 0
    text: Literal["encoder"] = "encoder"

    def __post_init__(self) -> None:
        check_grid(self.grid, "image tokens")
        if not 0 < self.codebook <= 1 << 24 or not 0 <= self.first_id <= 1 << 24:
            raise refuse(f"image tokens section: {self.codebook} codes from id {self.first_id} cannot be meant")


def check_grid(grid: tuple[int, int], section: str) -> None:
    """Raises `BundleError` unless a grid of codes has rows and columns, and no more than any picture needs."""
    if min(grid) < 1 or grid[0] * grid[1] > _MOST_TOKENS:
        raise refuse(f"{section} section: {grid[0]} rows of {grid[1]} codes cannot be meant")
