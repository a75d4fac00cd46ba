"""What a user asks of a diffusion bundle, checked before any work is done."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlrt.diffusion_sections import RULES, StageSpec
from vlrt.errors import UsageError, VlrtError

T = TypeVar("T", int, float, str)
LARGEST_SEED = 2**64 - 1


class CancelledError(VlrtError):
    """Painting stopped because its user asked for it."""


@dataclass(frozen=True)
class PaintStep:
    """How far a painting is; given to `on_step` after every step.

    Args:
        stage: its name.
        step, steps: steps done, of how many.
        picture, pictures: which picture, from 0, of how many.
        sample: [C, H, W] or [D], at the next noise level; the loop's own, so copy what is to be kept.
        preview: makes a picture of what is there so far; `None` where the model gives no way to.
    """

    stage: str
    step: int
    steps: int
    picture: int
    pictures: int
    sample: NDArray[np.float32]
    preview: Callable[[], Image.Image | None]


@dataclass(frozen=True)
class PaintHooks:
    """What is told of the steps, and what is asked before each of them whether to go on."""

    on_step: Callable[[PaintStep], object] | None = None
    should_cancel: Callable[[], bool] | None = None


@dataclass(frozen=True)
class PaintRequest:
    """Options of every task that paints; `None` leaves them to the bundle.

    Args:
        negative: what the picture is guided away from; only with guidance above 1.
        seed: what ``torch.Generator().manual_seed`` takes in the reference, from 0 to 2⁶⁴ − 1; drawn where `None`.
            Further pictures take the seeds after it.
        count: pictures.
        steps, guidance, scheduler: of all stages, or by stage name. A single guidance is for the stages that are
            guided by default, or else for all.
        eta: noise of DDIM, 0 to 1.
        guidance_rescale: Lin et al. 2023, section 3.4; 0 to 1.
        guidance_interval: shares of the steps between which guidance is used.
        gradient_guidance: strength of the gradient of the bundle's classifier, where it has one (CLIP guidance).
        height, width: pixels of the finished picture.
        strength: of the tasks that start from a photograph: share of the steps that are walked, above 0, to 1.
        label: name or number of the class of a class-conditional model.
        two_pass: evaluates guided and unguided rows one after the other, which halves a step's memory; `None`: where
            memory is short.
        tiled: lets the autoencoder work in tiles; `None`: for large pictures only.
    """

    negative: str = ""
    seed: int | None = None
    count: int = 1
    steps: int | Mapping[str, int] | None = None
    guidance: float | Mapping[str, float] | None = None
    scheduler: str | Mapping[str, str] | None = None
    eta: float = 0.0
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    gradient_guidance: float | None = None
    height: int | None = None
    width: int | None = None
    strength: float | None = None
    label: int | str | None = None
    two_pass: bool | None = None
    tiled: bool | None = None

    def __post_init__(self) -> None:
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(2**32))
        if not 0 <= self.first_seed <= LARGEST_SEED - (self.count - 1):
            raise UsageError(f"the seed {self.seed} does not fit 64 bits", f"0 to {LARGEST_SEED}")
        if not 1 <= self.count <= 1024:
            raise UsageError(f"`count` is {self.count}, expected 1 to 1024 pictures")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise UsageError(
                f"`strength` is {self.strength}, expected a number above 0, to 1",
                "0.3 keeps most of the photograph, 0.9 little",
            )
        if not 0 <= self.eta <= 1:
            raise UsageError(f"`eta` is {self.eta}, expected 0 to 1", "0 adds no noise, 1 as much as DDPM")
        if self.guidance_rescale is not None and not 0 <= self.guidance_rescale <= 1:
            raise UsageError(f"`guidance_rescale` is {self.guidance_rescale}, expected 0 to 1")
        start, end = self.guidance_interval
        if not 0 <= start < end <= 1:
            raise UsageError(f"guidance from {start} to {end} of the steps cannot be", "for example 0.2 to 0.8")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> PaintRequest:
        """From options by name.

        Raises:
            UsageError: an unknown name (the nearest is given), or a value that cannot be meant.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise UsageError(f"there is no option `{name}`", f"did you mean `{near[0]}`?" if near else "")
        return cls(**options)

    @property
    def first_seed(self) -> int:
        """The seed of the first picture."""
        return int(self.seed or 0)

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture."""
        return [self.first_seed + i for i in range(self.count)]


@dataclass(frozen=True)
class StageChoice:
    """What one stage does: its defaults, or what was asked for."""

    stage: StageSpec
    steps: int
    guidance: float
    rule: str

    def __post_init__(self) -> None:
        stage, most = self.stage, self.stage.schedule.train_steps
        if not 1 <= self.steps <= most:
            what = f"{self.steps} steps of the stage `{stage.name}` are not possible: it was trained with {most}"
            raise UsageError(what, f"--steps {min(max(self.steps, 1), most)}, or leave it at {stage.steps}")
        if not _takes(stage, self.rule):
            allowed = ", ".join(dict.fromkeys((stage.rule, *stage.rules)))
            known = "" if self.rule in RULES else " (there is no such rule)"
            raise UsageError(
                f"the stage `{stage.name}` cannot be sampled with `{self.rule}`{known}", f"one of {allowed}"
            )

    @property
    def guided(self) -> bool:
        """Whether the unconditional rows are evaluated too."""
        return self.guidance > 1 and not self.stage.guidance_embedding


@dataclass(frozen=True)
class Choices:
    """What every stage does, and the request it comes from."""

    request: PaintRequest
    stages: dict[str, StageChoice] = field(default_factory=dict)

    @classmethod
    def of(cls, request: PaintRequest, stages: Sequence[StageSpec]) -> Choices:
        """The choices for `stages`.

        Raises:
            UsageError: a stage that the bundle lacks, or a value that a stage cannot do.
        """
        guided = [stage.name for stage in stages if stage.guidance > 1 or stage.guidance_embedding]
        guided = guided or [stage.name for stage in stages]
        every = [stage.name for stage in stages]
        # A consistency decoder has the steps that it was trained for.
        counted = [stage.name for stage in stages if stage.rule != "consistency"]
        steps = _by_stage("steps", request.steps, counted, every)
        guidance = _by_stage("guidance", request.guidance, guided, every)
        rules = _by_stage("scheduler", request.scheduler, every, every)
        if isinstance(request.scheduler, str):
            rules = _where_known(request.scheduler, stages)
        return cls(
            request,
            {
                stage.name: StageChoice(
                    stage,
                    steps.get(stage.name, stage.steps),
                    float(guidance.get(stage.name, stage.guidance)),
                    rules.get(stage.name, stage.rule),
                )
                for stage in stages
            },
        )

    @property
    def guided(self) -> bool:
        """Whether any stage needs the unconditional prompt."""
        return any(choice.guided for choice in self.stages.values())


def _by_stage(name: str, value: T | Mapping[str, T] | None, meant: Sequence[str], known: Sequence[str]) -> dict[str, T]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        for stage in value:
            if stage not in known:
                raise UsageError(f"`{name}` names the stage `{stage}`", "the stages are " + ", ".join(known))
        return dict(value)
    return dict.fromkeys(meant, value)


def _where_known(rule: str, stages: Sequence[StageSpec]) -> dict[str, str]:
    """One rule for all stages that can be sampled with it; for none of them, the first one refuses it."""
    takes = [stage.name for stage in stages if _takes(stage, rule)]
    return dict.fromkeys(takes or [stages[0].name], rule)


def _takes(stage: StageSpec, rule: str) -> bool:
    """Whether a stage can be sampled with a rule; ``plms`` is ``pndm`` without its Runge-Kutta start."""
    return ("pndm" if rule == "plms" else rule) in (stage.rule, *stage.rules)
