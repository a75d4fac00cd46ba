"""A model's noise schedule, and one walk down through it by an update rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vlrt import _C
from vlrt.diffusion_sections import RULES, ScheduleSpec
from vlrt.errors import UsageError

FloatArray = NDArray[np.float32]

_KINDS = {
    "ddim": _C.UpdateKind.ddim,
    "ddpm": _C.UpdateKind.ddpm,
    "pndm": _C.UpdateKind.pndm,
    "euler": _C.UpdateKind.euler,
    "euler-ancestral": _C.UpdateKind.euler_ancestral,
    "heun": _C.UpdateKind.heun,
    "dpm++2m": _C.UpdateKind.dpm_solver,
    "lcm": _C.UpdateKind.lcm,
    "unclip": _C.UpdateKind.unclip,
    "consistency": _C.UpdateKind.consistency,
}
_CLIPPING = ("ddim", "ddpm", "heun", "lcm", "unclip")
_THRESHOLDING = ("ddim", "ddpm", "lcm", "dpm++2m")
"""Rules whose diffusers scheduler bounds the predicted clean sample, by a constant and dynamically."""


@dataclass(frozen=True)
class Evaluation:
    """One call of the denoiser, where x_t = `signal` · x₀ + `noise` · z.

    Args:
        timestep: what the denoiser is told; whole but for the rules that interpolate noise levels.
        divisor: of the sample before the denoiser sees it.
        signal, noise: of the level at which it is called.
        draws: whether the step after it adds fresh noise.
    """

    timestep: float
    divisor: float
    signal: float
    noise: float
    draws: bool


class Schedule:
    """The evaluations of one rule over one schedule, and its coefficients.

    Args:
        spec: the noise the model was trained with.
        rule: a name of `vlrt.diffusion_sections.RULES`; ``plms`` is ``pndm`` without its Runge-Kutta start.
        steps: how many; where `spec` lists its timesteps or counts them by sections, another number than those
            makes one section of all (``sections``) or the ``leading`` spacing (``explicit``).
        eta: noise of DDIM, 0 to 1.

    `init_noise_sigma` is what normals are multiplied with to start from, `order` the evaluations of a whole step.

    Raises:
        UsageError: a rule, or a number of steps, that the schedule cannot be walked with.
    """

    def __init__(self, spec: ScheduleSpec, rule: str, steps: int, eta: float = 0.0) -> None:
        self.spec = spec
        self.rule = rule
        self.steps = steps
        try:
            self._options = _update_options(spec, rule, steps, eta)
            native = self.walk()
        except ValueError as error:
            raise UsageError(f"`{rule}` with {steps} steps: {error}") from None
        self.order = native.order
        self.init_noise_sigma = native.init_noise_sigma
        self.evaluations = tuple(Evaluation(*found) for found in native.evaluations)

    def walk(self) -> _C.UpdateRule:
        """The rule for one run; it remembers steps, so each run has its own and threads may share the schedule."""
        return _C.UpdateRule(noise_schedule(self.spec), self._options)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the denoiser is told, evaluation by evaluation."""
        return tuple(evaluation.timestep for evaluation in self.evaluations)

    @property
    def whole(self) -> bool:
        """Whether all timesteps are whole numbers."""
        return all(t.is_integer() for t in self.timesteps)

    def start(self, strength: float) -> int:
        """The first evaluation for a picture that is changed by `strength`, above 0 to 1.

        Source: diffusers 0.39, `StableDiffusionImg2ImgPipeline.get_timesteps`.

        Raises:
            UsageError: so weak that no step is left.
        """
        walked = min(int(self.steps * strength), self.steps)
        if walked < 1:
            needed = 1 / self.steps
            what = f"a strength of {strength:g} leaves none of {self.steps} steps"
            raise UsageError(what, f"a strength of {needed:.2g} or more, or more steps")
        return (self.steps - walked) * self.order

    def add_noise(self, sample: FloatArray, noise: FloatArray, index: int) -> FloatArray:
        """A clean sample with the noise that evaluation `index` expects."""
        level = self.evaluations[index]
        return np.float32(level.signal) * sample + np.float32(level.noise) * noise


@lru_cache(maxsize=32)
def noise_schedule(spec: ScheduleSpec) -> _C.NoiseSchedule:
    """Variances and cumulative signal power per training timestep."""
    try:
        return _C.NoiseSchedule(
            betas=getattr(_C.Betas, spec.betas),
            train_steps=spec.train_steps,
            beta_start=spec.beta_start,
            beta_end=spec.beta_end,
            values=spec.values,
            zero_terminal_snr=spec.zero_terminal_snr,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def add_noise(spec: ScheduleSpec, sample: FloatArray, noise: FloatArray, timestep: int) -> FloatArray:
    """A clean sample with the noise of a training timestep (Ho, Jain and Abbeel 2020, equation 4).

    Raises:
        UsageError: a timestep outside the training's.
    """
    if not 0 <= timestep < spec.train_steps:
        raise UsageError(f"the noise level {timestep} lies outside 0 to {spec.train_steps - 1}")
    signal: np.float32 = noise_schedule(spec).alphas_cumprod[timestep]
    root_signal, root_noise = np.float32(np.sqrt(signal)), np.float32(np.sqrt(1 - signal))
    return root_signal * sample + root_noise * noise


def _listed(spec: ScheduleSpec, steps: int) -> list[int]:
    """Timesteps of the spacings that count or name them; empty for the others."""
    if spec.spacing == "explicit":
        return sorted(spec.timesteps, reverse=True) if len(spec.timesteps) == steps else []
    if spec.spacing != "sections":
        return []
    if steps < 1:
        raise ValueError(f"expected 1 to {spec.train_steps}")
    trained = _C.section_timesteps(spec.sections, spec.train_steps) if spec.sections else []
    return trained if len(trained) == steps else _C.section_timesteps(str(steps), spec.train_steps)


def _update_options(spec: ScheduleSpec, rule: str, steps: int, eta: float) -> _C.UpdateOptions:
    name = "pndm" if rule == "plms" else rule
    if name not in _KINDS:
        raise UsageError(f"there is no update rule `{rule}`", f"one of {', '.join(RULES)}")
    if not 1 <= steps <= spec.train_steps:
        raise ValueError(f"expected 1 to {spec.train_steps}")
    native = _C.UpdateOptions()
    native.kind = _KINDS[name]
    native.steps = steps
    native.prediction = getattr(_C.Prediction, spec.prediction)
    native.eta = eta
    native.skip_prk_steps = spec.skip_prk_steps or rule == "plms"
    native.rederive_epsilon = spec.respaced
    native.final_sigma = getattr(_C.FinalSigma, spec.final_sigma)
    for same in ("set_alpha_to_one", "karras_sigmas", "solver_order", "lower_order_final", "original_steps"):
        setattr(native, same, getattr(spec, same))
    native.timestep_scaling = spec.timestep_scaling
    _set_variance(native, spec, name)
    _set_spacing(native, spec, name, steps)
    _set_bounds(native, spec, name)
    return native


def _set_variance(native: _C.UpdateOptions, spec: ScheduleSpec, rule: str) -> None:
    if rule not in ("ddpm", "unclip"):
        return
    if spec.variance == "fixed_large_log":
        raise ValueError("the variance `fixed_large_log` is not a number in the reference either")
    native.variance = getattr(_C.Variance, spec.variance)


def _set_spacing(native: _C.UpdateOptions, spec: ScheduleSpec, rule: str, steps: int) -> None:
    listed = [] if rule == "pndm" else _listed(spec, steps)
    if listed:
        native.spacing = _C.Spacing.listed
        native.timesteps = listed
    elif spec.spacing in ("trailing", "linspace"):
        native.spacing = getattr(_C.Spacing, spec.spacing)
    native.steps_offset = spec.steps_offset


def _set_bounds(native: _C.UpdateOptions, spec: ScheduleSpec, rule: str) -> None:
    if spec.threshold is not None and rule in _THRESHOLDING:
        native.dynamic_threshold = True
        native.threshold_ratio = spec.threshold.ratio
        native.threshold_maximum = spec.threshold.maximum
    elif rule in _CLIPPING:
        native.clip_range = spec.clip_sample
