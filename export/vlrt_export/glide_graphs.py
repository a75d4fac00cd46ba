"""The graphs of a GLIDE bundle: per stage the prompt's transformer and the denoiser, and the noised CLIP's two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlrt_export.glide_checkpoint import Half, NoisedClip
from vlrt_export.graph import Graph
from vlrt_export.modules.glide_clip import ClipGradient

CLIP_TEXT, CLIP_GRADIENT, CLIP_EMBEDDING = "clip_text_encoder", "clip_gradient", "clip_text_embedding"
CLIP_IDS = "clip_ids"
_TIMES = (997, 12, 431)


@dataclass(frozen=True)
class StageNames:
    """What the arrays of a stage are called in the bundle; everything known by name to a sampler is in one place."""

    stage: str

    @property
    def text(self) -> str:
        """Role of the graph that reads the prompt."""
        return f"{self.stage}_text_encoder"

    @property
    def ids(self) -> str:
        """Input of that graph: [N, L] int64."""
        return f"{self.stage}_ids"

    @property
    def mask(self) -> str:
        """Input of that graph: 1 for a prompt's ids."""
        return f"{self.stage}_mask"

    @property
    def kept(self) -> str:
        """Mask of inpainting, 1 where the picture is kept."""
        return f"{self.stage}_kept"

    @property
    def masked(self) -> str:
        """Picture of inpainting without what is painted anew."""
        return f"{self.stage}_masked"

    @property
    def low_resolution(self) -> str:
        """The smaller picture at this stage's size."""
        return f"{self.stage}_low_resolution"

    def conditions(self, layers: int) -> tuple[str, ...]:
        """Outputs of the text graph: the projection, then keys and values of every attention layer."""
        return (f"{self.stage}_projection", *(f"{self.stage}_memory.{i}" for i in range(layers)))


def stage_graphs(names: StageNames, half: Half, tolerance: float) -> tuple[Graph, Graph]:
    """The prompt's graph and the denoiser's."""
    layers = len(half.unet.attention_layers)
    outputs = names.conditions(layers)
    generator = torch.Generator().manual_seed(0)
    texts = [_text_case(names, half, rows, generator) for rows in (2, 1, 3)]
    text = Graph(
        role=names.text,
        module=half.text,
        inputs=texts[0],
        outputs=outputs,
        dynamic={name: {0: "texts"} for name in texts[0]},
        output_axes={name: {0: "texts"} for name in outputs},
        cases=texts[1:],
        tolerance=tolerance,
    )
    cases = [_denoiser_case(names, half, rows, outputs, generator) for rows in (2, 1)]
    denoiser = Graph(
        role=names.stage,
        module=half.unet,
        inputs=cases[0],
        outputs=("prediction",),
        dynamic={name: {0: "rows"} for name in cases[0]},
        output_axes={"prediction": {0: "rows"}},
        cases=cases[1:],
        tolerance=tolerance,
    )
    return text, denoiser


def clip_graphs(clip: NoisedClip, tolerance: float) -> tuple[Graph, Graph]:
    """The text tower, and the gradient of its agreement with a noisy picture."""
    sizes, generator = clip.sizes, torch.Generator().manual_seed(0)
    texts = [_clip_ids(clip, rows, generator) for rows in (2, 1, 3)]
    text = Graph(
        role=CLIP_TEXT,
        module=clip.text,
        inputs={CLIP_IDS: texts[0]},
        outputs=(CLIP_EMBEDDING,),
        dynamic={CLIP_IDS: {0: "texts"}},
        output_axes={CLIP_EMBEDDING: {0: "texts"}},
        cases=[{CLIP_IDS: ids} for ids in texts[1:]],
        tolerance=tolerance,
    )
    cases = [
        {
            "sample": _normal((rows, 3, sizes.image_size, sizes.image_size), generator),
            "timestep": torch.tensor(_TIMES[:rows]),
            CLIP_EMBEDDING: torch.nn.functional.normalize(_normal((rows, sizes.dimension), generator)),
        }
        for rows in (2, 1)
    ]
    gradient = Graph(
        role=CLIP_GRADIENT,
        module=ClipGradient(clip.image, sizes.scale).eval(),
        inputs=cases[0],
        outputs=("gradient",),
        dynamic={name: {0: "rows"} for name in cases[0]},
        output_axes={"gradient": {0: "rows"}},
        cases=cases[1:],
        tolerance=tolerance,
    )
    return text, gradient


def _text_case(names: StageNames, half: Half, rows: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Prompts of different lengths, the last of them empty."""
    sizes = half.unet.sizes
    ids = torch.randint(0, sizes.vocabulary - 1, (rows, sizes.context), generator=generator)
    mask = torch.zeros_like(ids)
    for row in range(rows):
        mask[row, : (rows - 1 - row) * 3] = 1
    return {names.ids: torch.where(mask > 0, ids, sizes.vocabulary - 1), names.mask: mask}


def _denoiser_case(
    names: StageNames, half: Half, rows: int, conditions: Sequence[str], generator: torch.Generator
) -> dict[str, Tensor]:
    """Noise under real conditions: those that the text side makes of random ids."""
    sizes = half.unet.sizes
    shape = (rows, 3, sizes.image_size, sizes.image_size)
    case = {"sample": _normal(shape, generator), "timestep": torch.tensor(_TIMES[:rows])}
    with torch.no_grad():
        made = half.text(*_text_case(names, half, rows, generator).values())
    known = dict(zip(conditions, made))
    case[conditions[0]] = known[conditions[0]]
    if sizes.inpaint:
        kept = (_normal((rows, 1, *shape[2:]), generator) > 0).float()
        case |= {names.masked: _normal(shape, generator).clamp(-1, 1) * kept, names.kept: kept}
    if sizes.low_resolution:
        case[names.low_resolution] = _normal(shape, generator).clamp(-1, 1)
    return case | {name: known[name] for name in conditions[1:]}


def _clip_ids(clip: NoisedClip, rows: int, generator: torch.Generator) -> Tensor:
    """Ids with an end at different places and zeros behind it."""
    sizes, end = clip.sizes, clip.text.end_id
    ids = torch.randint(1, max(2, end), (rows, sizes.context), generator=generator)
    for row in range(rows):
        place = min(3 + 4 * row, sizes.context - 1)
        ids[row, place], ids[row, place + 1 :] = end, 0
    return ids


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)
