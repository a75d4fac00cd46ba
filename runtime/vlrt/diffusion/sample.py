"""The C++ sampling loop and its buffers as NumPy arrays, without copies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlrt import _C
from vlrt.diffusion.generator import Generator
from vlrt.diffusion.options import SampleOptions
from vlrt.diffusion.schedule import FloatArray, Schedule
from vlrt.errors import EngineError, UsageError

Part = Literal["both", "unconditional", "conditional"]


@dataclass(frozen=True)
class StepBuffers:
    """The buffers of one forward pass over R rows; the same arrays at every step.

    Args:
        rows: R: 2N for ``both``, else N images.
        part: ``both``: N unconditional rows, then N conditional ones; or one of the two alone.
        sample: [R, *shape] float32, read.
        timestep: [R] int64, read; fractions are cut off.
        real_timestep: [R] float32, read.
        prediction: [R, *output shape] float32, to be filled.
    """

    rows: int
    part: Part
    sample: FloatArray
    timestep: NDArray[np.int64]
    real_timestep: FloatArray
    prediction: FloatArray


@dataclass(frozen=True)
class StepDone:
    """What is there after a step; the arrays are the loop's own and change with the next one.

    Args:
        step, steps: evaluations done, of how many.
        sample: [N, *shape], x at the next noise level.
        denoised: [N, *shape], the clean sample as it is predicted now.
    """

    step: int
    steps: int
    sample: FloatArray
    denoised: FloatArray


@dataclass(frozen=True)
class KnownPicture:
    """What is known of the pictures; arrays broadcast to [N, *shape].

    Args:
        sample: the clean picture in the stage's own space.
        mask: 1 where the model paints, 0 where the picture is kept.
        noise: of the known part after every step, as diffusers' `StableDiffusionInpaintPipeline` puts it back;
            `None`: the predicted clean sample is replaced instead, as GLIDE's inpainting does.
    """

    sample: FloatArray
    mask: FloatArray
    noise: FloatArray | None = None


Step = Callable[[StepBuffers, int], object]
"""One forward pass over the buffers; the number is that of the evaluation in the whole schedule, from 0."""
Gradient = Callable[[FloatArray, int, FloatArray], object]
"""Fills its last argument [N, *shape] with the gradient of a log-probability by the sample, at an evaluation."""
OnStep = Callable[[StepDone], object]
ShouldCancel = Callable[[], bool]


@dataclass(frozen=True)
class Hooks:
    """What is called beside the denoiser; any may be `None`.

    Args:
        gradient: of a classifier, which moves the mean by variance · gradient (Dhariwal and Nichol 2021, algorithms 1
            and 2); the rules ``ddpm``, ``unclip`` and ``ddim`` can.
        on_step: after every evaluation.
        should_cancel: before every evaluation; true ends the run.
    """

    gradient: Gradient | None = None
    on_step: OnStep | None = None
    should_cancel: ShouldCancel | None = None


class Loop:
    """Buffers for N samples, allocated once, and the sampling loop over them; one run at a time.

    Args:
        images: N.
        shape: of one sample: (channels, height, width), or (width,) of an embedding.
        output_channels: first axis of one prediction; more than the sample's where variances are learned.
    """

    def __init__(self, images: int, shape: Sequence[int], output_channels: int | None = None) -> None:
        self.images = images
        self.shape = tuple(shape)
        self.output_shape = (output_channels or self.shape[0], *self.shape[1:])
        try:
            self._native = _C.Denoiser(
                images=images,
                channels=self.shape[0],
                output_channels=self.output_shape[0],
                pixels=math.prod(self.shape[1:]),
            )
        except ValueError as error:
            raise UsageError(f"samples {list(self.shape)}: {error}") from None
        self.sample: FloatArray = self._native.sample.reshape(images, *self.shape)
        self.denoised: FloatArray = self._native.denoised.reshape(images, *self.shape)
        self.gradient: FloatArray = self._native.gradient.reshape(images, *self.shape)
        self._buffers: dict[Part, StepBuffers] = {}

    def buffers(self, part: Part) -> StepBuffers:
        """The buffers of a part; the same views every time."""
        if part not in self._buffers:
            self._buffers[part] = self._make_buffers(part)
        return self._buffers[part]

    def _make_buffers(self, part: Part) -> StepBuffers:
        native, rows = self._native, self.images * (2 if part == "both" else 1)
        outputs = native.model_output.reshape(2 * self.images, *self.output_shape)
        return StepBuffers(
            rows=rows,
            part=part,
            sample=native.model_input.reshape(2 * self.images, *self.shape)[:rows],
            timestep=native.timesteps[:rows],
            real_timestep=native.real_timesteps[:rows],
            prediction=outputs[self.images :] if part == "conditional" else outputs[:rows],
        )

    def run(
        self,
        step: Step,
        schedule: Schedule,
        initial: FloatArray,
        options: SampleOptions | None = None,
        *,
        generators: Sequence[Generator] = (),
        start: int = 0,
        known: KnownPicture | None = None,
        hooks: Hooks | None = None,
        stage: str = "the denoiser",
    ) -> FloatArray | None:
        """Samples; see `sample`."""
        options, hooks = options or SampleOptions(), hooks or Hooks()
        self.sample[...] = self._broadcast(initial, "the first sample")
        parts: dict[Any, Part] = {
            _C.Part.both: "both",
            _C.Part.unconditional: "unconditional",
            _C.Part.conditional: "conditional",
        }
        try:
            done = self._native.run(
                rule=schedule.walk(),
                options=_native_options(options, start, known),
                generators=[generator.native for generator in generators],
                predict=lambda part, rows, index: step(self.buffers(parts[part]), index),
                **self._known_arrays(known),
                **self._callbacks(hooks),
            )
        except _C.PredictionError as error:
            raise EngineError(f"`{stage}` stopped at {error}", "`vlrt verify BUNDLE` checks the model") from None
        except ValueError as error:
            raise UsageError(f"`{stage}` cannot be sampled with `{schedule.rule}`: {error}") from None
        return self.sample.copy() if done == len(schedule.evaluations) - start else None

    def _known_arrays(self, known: KnownPicture | None) -> dict[str, Any]:
        if known is None:
            return {}
        found = {"known_sample": known.sample, "known_mask": known.mask}
        if known.noise is not None:
            found["known_noise"] = known.noise
        return {name: self._broadcast(array, name.replace("_", " ")) for name, array in found.items()}

    def _callbacks(self, hooks: Hooks) -> dict[str, Any]:
        gradient, on_step = hooks.gradient, hooks.on_step
        found: dict[str, Any] = {}
        if gradient is not None:
            found["gradient"] = lambda index: gradient(self.sample, index, self.gradient)
        if on_step is not None:
            found["on_step"] = lambda done, steps: on_step(StepDone(done, steps, self.sample, self.denoised))
        if hooks.should_cancel is not None:
            found["should_cancel"] = hooks.should_cancel
        return found

    def _broadcast(self, array: FloatArray, name: str) -> FloatArray:
        wanted = (self.images, *self.shape)
        try:
            return np.ascontiguousarray(np.broadcast_to(np.asarray(array, np.float32), wanted))
        except ValueError:
            raise UsageError(f"{name} has the shape {list(np.shape(array))}, expected {list(wanted)}") from None


def sample(
    step: Step,
    schedule: Schedule,
    initial: FloatArray,
    options: SampleOptions | None = None,
    *,
    output_channels: int | None = None,
    generators: Sequence[Generator] = (),
    start: int = 0,
    known: KnownPicture | None = None,
    hooks: Hooks | None = None,
    stage: str = "the denoiser",
) -> FloatArray | None:
    """Turns noise into samples by calling a denoiser, which may be any function over NumPy arrays.

    Args:
        step: one forward pass, see `Step`.
        schedule: evaluations and update rule.
        initial: [N, *shape] float32, the sample to start from: normals times `schedule.init_noise_sigma`, or
            `schedule.add_noise(picture, normals, start)`.
        options: guidance and draws.
        output_channels: of a prediction; the sample's where `None`.
        generators: of fresh noise: one for all images or one for each; needed by the rules that draw.
        start: the first evaluation, see `Schedule.start`.
        known: what is known of the pictures.
        hooks: what else is called.
        stage: what errors call the denoiser.

    Returns:
        The samples [N, *shape] float32, or `None` where `hooks.should_cancel` ended the run.

    Raises:
        EngineError: the denoiser gave NaN or infinity; stage and step are named.
        UsageError: shapes or options that do not go with each other.
    """
    loop = Loop(len(initial), initial.shape[1:], output_channels)
    return loop.run(
        step,
        schedule,
        initial,
        options,
        generators=generators,
        start=start,
        known=known,
        hooks=hooks,
        stage=stage,
    )


def _native_options(options: SampleOptions, start: int, known: KnownPicture | None) -> _C.SamplingOptions:
    native = _C.SamplingOptions()
    guidance = _C.GuidanceOptions()
    guidance.scale = options.guidance
    guidance.rescale = options.guidance_rescale
    guidance.start, guidance.stop = options.guidance_interval
    guidance.channels = options.guided_channels
    native.guidance = guidance
    native.two_passes = options.two_passes
    native.start = start
    native.noise_copies = 2 if options.paired_noise else 1
    native.always_draws = options.always_draw
    native.replaces = known is not None and known.noise is None
    return native
