"""A stage's denoiser bound to a sampling loop: one call a step, over buffers that stay where they are."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vlrt.diffusion.conditions import Known, stack_rows
from vlrt.diffusion.sample import Loop, Part, StepBuffers
from vlrt.diffusion.schedule import FloatArray
from vlrt.diffusion_sections import StageSpec
from vlrt.engines import Array, Sessions
from vlrt.engines.device_session import DeviceSession
from vlrt.errors import BundleError
from vlrt.manifest import TensorSpec


class BoundDenoiser:
    """The graphs of one stage over the buffers of one loop; see `vlrt.diffusion.sample.Step`.

    Args:
        known: what the denoiser is given besides sample and time.
        guidance: strength that a denoiser which was distilled with guidance is told.
        last: number of the last evaluation, which may have a graph of its own.
    """

    def __init__(
        self, stage: StageSpec, sessions: Sessions, loop: Loop, known: Known, guidance: float, last: int
    ) -> None:
        self._stage, self._sessions, self._loop = stage, sessions, loop
        self._known, self._guidance, self._last = known, guidance, last
        self._runs: dict[tuple[str, Part], Callable[[], None]] = {}

    def __call__(self, buffers: StepBuffers, index: int) -> None:
        """One forward pass."""
        stage = self._stage
        role = stage.last_denoiser if stage.last_denoiser and index == self._last else stage.denoiser
        run = self._runs.get((role, buffers.part))
        if run is None:
            run = self._runs[role, buffers.part] = self._bind(role, buffers)
        run()

    def _bind(self, role: str, buffers: StepBuffers) -> Callable[[], None]:
        stage, session = self._stage, self._sessions.get(role)
        graph = session.spec
        time = _timestep(graph.input(stage.timestep_input), buffers, graph.file)
        moving: dict[str, Array] = {stage.sample_input: buffers.sample, stage.timestep_input: time}
        steady: dict[str, Array] = {}
        if stage.guidance_embedding:
            steady[stage.guidance_embedding] = np.repeat(
                guidance_embedding(self._guidance, stage.guidance_width), buffers.rows, axis=0
            )
        known = self._known
        if buffers.part == "unconditional":
            known = Known(known.view(False))
        steady |= stack_rows(graph, {**moving, **steady}, known, buffers.part == "both")
        outputs: dict[str, Array] = {stage.prediction_output: buffers.prediction}
        for tensor in graph.outputs:
            if tensor.name != stage.prediction_output:
                raise BundleError(f"`{graph.file}` has the output `{tensor.name}`, which nothing reads")
        if isinstance(session, DeviceSession):
            return session.bind({**moving, **session.keep(steady)}, outputs)
        return session.bind(moving | steady, outputs)

    def gradient(self, sample: FloatArray, gradient: FloatArray, timestep: float, scale: float) -> None:
        """Fills `gradient` with `scale` times the gradient of the stage's score by the sample [1, …]."""
        stage, graph = self._stage, self._sessions.get(self._stage.gradient).spec
        time = np.array([timestep], np.dtype(graph.input(stage.timestep_input).dtype))
        given: dict[str, Array] = {stage.sample_input: sample, stage.timestep_input: time}
        given |= stack_rows(graph, given, self._known, False)
        found = self._sessions.get(stage.gradient).run(**given)
        np.multiply(found["gradient"], np.float32(scale), out=gradient)


def _timestep(spec: TensorSpec, buffers: StepBuffers, file: str) -> Array:
    """The loop's buffer of the time that has the graph's type."""
    if spec.dtype == "int64":
        return buffers.timestep
    if spec.dtype == "float32":
        return buffers.real_timestep
    raise BundleError(f"`{spec.name}` of `{file}` is {spec.dtype}, expected int64 or float32", "export it again")


def guidance_embedding(guidance: float, width: int) -> FloatArray:
    """What a denoiser that was distilled with guidance is told of its strength: [1, width].

    Source: diffusers' ``get_guidance_scale_embedding`` with ``w = guidance − 1``.
    """
    half = width // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10000.0) / (half - 1))
    # Angles reach thousands, so a frequency must be rounded once, not by the last place more.
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = np.float32(guidance - 1) * np.float32(1000.0) * frequencies
    found = np.zeros((1, width), np.float32)
    found[0, :half], found[0, half : 2 * half] = np.sin(angles), np.cos(angles)
    return found
