"""A codec of pictures as the exporter sees it: its two graphs and the manifest's section, whatever its networks are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vlrt.manifest import CodecSpec
from vlrt_export.checkpoints import Checkpoint, LazyTensors
from vlrt_export.graph import Graph
from vlrt_export.modules.image_codec import ImageDetokenizer, ImageTokenizer

TOKENIZER, DETOKENIZER = "image_tokenizer", "image_detokenizer"
PIXELS, TOKENS = "pixels", "tokens"
TASKS = ("tokenize", "detokenize", "reconstruct")
_GRIDS = ((2, 2, 3), (1, 3, 2), (3, 2, 2))
"""Pictures, rows and columns of codes of the graphs' cases."""


@dataclass(frozen=True)
class ImageCodec:
    """Both halves of a codec in eval mode.

    Args:
        kind: ``vq-vae``, ``dvae`` or ``vqgan``.
        tokenizer: `None` where the checkpoint has only the half that paints.
        detokenizer: codes to pixels.
        factor: pixels along each side of what one code stands for.
        grid: rows and columns of codes it was trained on; `None` for any.
        checkpoint: where the weights come from; `None` where they are random.
        most_codes: of one picture that the graphs can take.
        reference: another implementation of the same weights, from pixels [N, 3, H, W] in [0, 1] to codes and their
            pixels; `None` where the export has none at hand.
    """

    kind: str
    tokenizer: ImageTokenizer | None
    detokenizer: ImageDetokenizer
    factor: int
    grid: tuple[int, int] | None = None
    checkpoint: Checkpoint | None = None
    most_codes: int = 1 << 16
    reference: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    @property
    def codebook(self) -> int:
        """Number of codes."""
        return self.detokenizer.codebook.shape[0]

    @property
    def tasks(self) -> tuple[str, ...]:
        """What a bundle with this codec serves by it."""
        return TASKS if self.tokenizer else ("detokenize",)

    def spec(self, grid: tuple[int, int] | None = None) -> CodecSpec:
        """The manifest's section.

        Args:
            grid: that of a decoder which writes the codes; the codec's own where `None`.
        """
        return CodecSpec(
            codebook=self.codebook,
            width=self.detokenizer.codebook.shape[1],
            factor=self.factor,
            grid=grid or self.grid,
            most_codes=self.most_codes,
            tokenizer=TOKENIZER if self.tokenizer else "",
            detokenizer=DETOKENIZER,
            pixels=PIXELS,
            tokens=TOKENS,
        )

    def graphs(self, tolerance: float) -> list[Graph]:
        """Tokenizer, where there is one, and detokenizer; any number of pictures of any size of whole codes."""
        painted = _graph(DETOKENIZER, self.detokenizer, [self._tokens(*g) for g in _GRIDS], PIXELS, tolerance)
        if self.tokenizer is None:
            return [painted]
        return [_graph(TOKENIZER, self.tokenizer, [self._pixels(*g) for g in _GRIDS], TOKENS, tolerance), painted]

    def _tokens(self, pictures: int, rows: int, columns: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(rows * columns)
        return {TOKENS: torch.randint(self.codebook, (pictures, rows, columns), generator=generator)}

    def _pixels(self, pictures: int, rows: int, columns: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(rows + columns)
        shape = (pictures, 3, rows * self.factor, columns * self.factor)
        return {PIXELS: torch.rand(shape, generator=generator)}


def _graph(role: str, module: nn.Module, cases: list[dict[str, Tensor]], output: str, tolerance: float) -> Graph:
    axes: dict[str, dict[int, str]] = {
        PIXELS: {0: "batch", 2: "height", 3: "width"},
        TOKENS: {0: "batch", 1: "rows", 2: "columns"},
    }
    return Graph(
        role=role,
        module=module.eval(),
        inputs=cases[0],
        outputs=(output,),
        dynamic={name: axes[name] for name in cases[0]},
        output_axes={output: axes[output]},
        cases=cases[1:],
        tolerance=tolerance,
    )


def under(tensors: Mapping[str, Tensor], prefix: str, where: str) -> LazyTensors:
    """Those tensors whose names begin with `prefix`, under what follows it."""
    names = [name for name in tensors if name.startswith(prefix)]
    return LazyTensors({name.removeprefix(prefix): partial(tensors.__getitem__, name) for name in names}, where)
