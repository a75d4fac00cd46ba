"""Graphs of a UNet: the denoiser, and the projection of the prompt that its layers read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlrt_export.graph import Graph
from vlrt_export.modules.diffusion_unet import BIAS, CLASS, EMBEDDING, GUIDANCE, Denoiser, PromptProjection

STATES = "prompt_states"
_EXTRA = (CLASS, GUIDANCE, EMBEDDING, BIAS)


@dataclass(frozen=True)
class Condition:
    """A further input of a denoiser, without its rows.

    Args:
        shape: of one row; height and width of what is joined to the sample's channels are open and left out.
        below: integers under this number instead of floats.
    """

    shape: tuple[int, ...] = ()
    below: int = 0


@dataclass(frozen=True)
class UNetGraphs:
    """How a UNet becomes a denoiser and, where it reads a prompt, a graph run once before the loop.

    Args:
        unet: diffusers' `UNet2DConditionModel` or `UNet2DModel`, in eval mode; the graphs share its weights.
        channels: of the sample; the UNet's own input channels less those of conditions joined to it.
        conditions: by the graph's input names; see `Denoiser` for those with a meaning of their own.
        prompt: width of the prompt's states; 0 where the UNet reads none.
        denoiser, projection: roles.
        prefix: of the names of what the projection gives; several UNets of a cascade need different ones.
        states: name of the prompt's states.
        predicted: channels of the prediction that are kept; 0: all.
        tolerance: of the graphs against torch.
    """

    unet: Any
    channels: int
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    prompt: int = 0
    denoiser: str = "denoiser"
    projection: str = "prompt_projection"
    prefix: str = ""
    states: str = STATES
    predicted: int = 0
    tolerance: float = 1e-3

    @property
    def multiple(self) -> int:
        """Of which heights and widths of a sample must be multiples: the UNet halves them so often."""
        return 1 << (len(self.unet.config.block_out_channels) - 1)

    def graphs(self) -> tuple[Graph, ...]:
        """The projection, where there is a prompt, and the denoiser.

        Raises:
            VlrtError: the UNet has parts that are not known.
        """
        if not self.prompt:
            return (self._denoiser(None),)
        projection = PromptProjection(self.unet)
        return self._projection(projection), self._denoiser(projection)

    def memory_names(self, projection: PromptProjection) -> tuple[str, ...]:
        """Names of what the projection gives: embedding, where there is one, keys, values."""
        embedding = (f"{self.prefix}{EMBEDDING}",) if projection.embedding is not None else ()
        kinds = [f"{self.prefix}prompt_{kind}" for kind in ("key", "value")]
        return (*embedding, *(f"{kind}.{layer}" for kind in kinds for layer in range(projection.layers)))

    def _projection(self, projection: PromptProjection) -> Graph:
        names = self.memory_names(projection)
        axes = {0: "batch", 1: "length"}
        generator = torch.Generator().manual_seed(0)
        shapes = ((2, 7), (1, 3), (3, 5))
        cases = [{self.states: torch.randn(*shape, self.prompt, generator=generator)} for shape in shapes]
        return Graph(
            role=self.projection,
            module=projection.eval(),
            inputs=cases[0],
            outputs=names,
            dynamic={self.states: axes},
            output_axes={name: {0: "batch"} if name.endswith(EMBEDDING) else axes for name in names},
            cases=cases[1:],
            tolerance=self.tolerance,
        )

    def _denoiser(self, projection: PromptProjection | None) -> Graph:
        embedded = projection is not None and projection.embedding is not None
        conditions = (*self.conditions, *((EMBEDDING,) if embedded else ()))
        layers = projection.layers if projection else 0
        cases = list(self._cases(projection))
        grid = {0: "rows", 2: f"{self.multiple}*height", 3: f"{self.multiple}*width"}
        return Graph(
            role=self.denoiser,
            module=Denoiser(self.unet, conditions, layers, self.predicted).eval(),
            inputs=cases[0],
            outputs=("prediction",),
            dynamic={name: self._axes(name, grid) for name in cases[0]},
            output_axes={"prediction": grid},
            cases=cases[1:],
            tolerance=self.tolerance,
        )

    def _axes(self, name: str, grid: dict[int, str]) -> dict[int, str]:
        if (name.startswith(f"{self.prefix}prompt_") and not name.endswith(EMBEDDING)) or name == BIAS:
            return {0: "rows", 1: "length"}
        joined = name in self.conditions and name not in _EXTRA
        return grid if joined or name == "sample" else {0: "rows"}

    def _cases(self, projection: PromptProjection | None) -> Iterator[dict[str, Tensor]]:
        """Small samples of odd proportions: what holds for them holds for all, and large ones take minutes."""
        for rows, height, width, length in ((2, 2, 3, 7), (1, 3, 2, 4), (4, 2, 2, 5)):
            generator = torch.Generator().manual_seed(rows)
            size = (height * self.multiple, width * self.multiple)
            case = {
                "sample": torch.randn(rows, self.channels, *size, generator=generator),
                "timestep": torch.randint(0, 1000, (rows,), generator=generator),
            }
            if self.unet.config.time_embedding_type != "learned":  # an embedding has no fractions of steps
                case["timestep"] = case["timestep"].float()
            for name, condition in self.conditions.items():
                shape = condition.shape if name in _EXTRA else (*condition.shape, *size)
                case[name] = _drawn((rows, length) if name == BIAS else (rows, *shape), condition.below, generator)
            if projection is not None:
                states = torch.randn(rows, length, self.prompt, generator=generator)
                with torch.no_grad():
                    case |= dict(zip(self.memory_names(projection), projection(states)))
            yield case


def _drawn(shape: tuple[int, ...], below: int, generator: torch.Generator) -> Tensor:
    if below:
        return torch.randint(0, below, shape, generator=generator)
    return torch.randn(shape, generator=generator)
