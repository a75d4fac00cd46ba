"""One stage at work: its first noise, what does not change over the steps, the loop, and the finish."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlrt.diffusion.conditions import Known, prepare
from vlrt.diffusion.denoiser import BoundDenoiser
from vlrt.diffusion.finish import finish
from vlrt.diffusion.generator import Generator
from vlrt.diffusion.memory import available
from vlrt.diffusion.options import SampleOptions
from vlrt.diffusion.preview import preview
from vlrt.diffusion.request import CancelledError, PaintHooks, PaintRequest, PaintStep, StageChoice
from vlrt.diffusion.resize import resize
from vlrt.diffusion.sample import Hooks, KnownPicture, Loop, StepDone
from vlrt.diffusion.schedule import Schedule, add_noise
from vlrt.diffusion.sources import Draw, Source
from vlrt.diffusion.tiles import tiles_wanted
from vlrt.diffusion_sections import LowResolutionSpec, StageSpec
from vlrt.engines import Sessions
from vlrt.errors import BundleError, UsageError
from vlrt.manifest import GraphSpec

Array = NDArray[np.float32]


_SHORT = 3
"""Memory is short below so many times the denoiser's weights: they, an engine's copy of them, and activations."""


@dataclass(frozen=True)
class StageTask:
    """What one stage does for all pictures of a request.

    Args:
        shape: of its sample, without the batch.
    """

    choice: StageChoice
    shape: tuple[int, ...]
    source: Source
    request: PaintRequest
    hooks: PaintHooks


@dataclass(frozen=True)
class _Beginning:
    """Where a loop starts: its first sample, and what it keeps of a photograph."""

    sample: Array
    start: int
    picture: KnownPicture | None
    known: Known


class StageRun:
    """Runs one stage for one picture after the other, in the same buffers.

    Args:
        sessions: of the bundle's graphs; the stage's own are loaded when they are first used.
    """

    def __init__(self, task: StageTask, sessions: Sessions) -> None:
        self.task, self.sessions = task, sessions
        self.stage: StageSpec = task.choice.stage
        self.guided = task.choice.guided
        rule = task.choice.rule
        self.schedule = Schedule(self.stage.schedule_of(rule), rule, task.choice.steps, task.request.eta)
        self.options = self._options()
        sessions.prepare(self.roles)
        self.loop = Loop(1, task.shape, self._output_channels())

    @property
    def roles(self) -> tuple[str, ...]:
        """The stage's graphs without those that finish it."""
        return tuple(role for role in self.stage.roles if role not in self.stage.finish)

    def __call__(self, known: Known, generator: Generator, place: tuple[int, int]) -> tuple[Known, Array]:
        """What the stage knows, and its sample [1, …].

        Args:
            known: what is known before it, of one picture.
            generator: of that picture; draws come in the reference's order.
            place: which picture, of how many.

        Raises:
            EngineError: values that are not finite; stage and step are named.
            CancelledError: the hooks asked to stop.
        """
        begun = self._begin(known, generator)
        known = prepare(self.stage, begun.known, self.sessions, self.guided)
        last = len(self.schedule.evaluations) - 1
        denoiser = BoundDenoiser(self.stage, self.sessions, self.loop, known, self.task.choice.guidance, last)
        found = self.loop.run(
            denoiser,
            self.schedule,
            begun.sample,
            self.options,
            generators=[generator],
            start=begun.start,
            known=begun.picture,
            hooks=self._hooks(denoiser, place),
            stage=self.stage.name,
        )
        if found is None:
            raise CancelledError(f"stopped in the stage `{self.stage.name}`, as was asked")
        return known, found

    def finish(self, known: Known, sample: Array) -> Known:
        """What later stages know: the sample as the stage's last graphs make it."""
        tiled = tiles_wanted(self.stage, self.task.shape, self.task.request.tiled)
        return known.with_arrays(finish(self.stage, sample, dict(known.conditional), self.sessions, tiled))

    def _check_timesteps(self, graph: GraphSpec) -> None:
        """Rules over noise levels may call the denoiser between two timesteps of the training."""
        taken = graph.input(self.stage.timestep_input).dtype
        if taken == "int64" and not self.schedule.whole:
            what = f"`{self.schedule.rule}` calls `{self.stage.name}` between timesteps; `{graph.file}` takes none"
            raise UsageError(what, f"--scheduler {self.stage.rule}")

    def _output_channels(self) -> int:
        """Channels of a prediction: those of the sample, and of its variance where that is learned."""
        graph = self.sessions.bundle.manifest.graphs[self.stage.denoiser]
        channels = graph.output(self.stage.prediction_output).shape[1]
        if isinstance(channels, str):
            raise BundleError(f"`{graph.file}` does not say how many channels it predicts", "export it again")
        return channels

    def _options(self) -> SampleOptions:
        stage, request, choice = self.stage, self.task.request, self.task.choice
        rescale = stage.guidance_rescale if request.guidance_rescale is None else request.guidance_rescale
        return SampleOptions(
            guidance=choice.guidance if self.guided else 1.0,
            guidance_rescale=rescale,
            guidance_interval=request.guidance_interval,
            guided_channels=stage.guided_channels,
            two_passes=self.guided and self._two_passes(),
            paired_noise=stage.paired_noise and self.guided,
            always_draw=stage.final_noise,
        )

    def _two_passes(self) -> bool:
        """As asked, else where memory is short; what a step needs of it is not known before."""
        if self.task.request.two_pass is not None:
            return self.task.request.two_pass
        described = self.sessions.bundle.manifest
        graph, free = described.graphs[self.stage.denoiser], available()
        weights = sum(described.files[name].bytes for name in (graph.file, *graph.external))
        return free is not None and free < _SHORT * weights

    def _begin(self, known: Known, generator: Generator) -> _Beginning:
        """Draws in the order of the references: the low resolution's noise, photograph's latents, first noise."""
        low = self.stage.low_resolution
        draw = self._draw(generator)
        if low is not None and low.drawn == "before":
            known = self._with_low_resolution(low, known, draw)
        begun = self._first_sample(known, draw)
        if low is not None and low.drawn == "after":
            return _Beginning(
                begun.sample, begun.start, begun.picture, self._with_low_resolution(low, begun.known, draw)
            )
        return begun

    def _draw(self, generator: Generator) -> Draw:
        def draw(shape: tuple[int, ...]) -> Array:
            drawn = generator.randn(shape)
            if self.stage.paired_noise and self.guided:
                generator.randn(shape)
            return drawn

        return draw

    def _first_sample(self, known: Known, draw: Draw) -> _Beginning:
        """The noise a loop starts from, with the photograph in it where there is one.

        Source: diffusers' ``StableDiffusionImg2ImgPipeline.prepare_latents``, and that of its inpainting pipeline.
        """
        source, name, shape = self.task.source, self.stage.name, (1, *self.task.shape)
        picture, kept, whole = source.pictures.get(name), source.kept.get(name), source.strength == 1
        start = self.schedule.start(source.strength) if picture is not None else 0
        needed = kept is None or kept.spec.kind != "channels" or not whole
        clean = picture.draw(draw) if picture is not None and needed else None
        noise = draw(shape)
        if clean is None or (kept is not None and whole):
            sample = noise * np.float32(self.schedule.init_noise_sigma) * np.float32(self.stage.noise_scale)
        else:
            sample = self.schedule.add_noise(clean, noise, start)
        if kept is None:
            return _Beginning(sample, start, None, known)
        masked = kept.masked.draw(draw)
        mask = 1 - kept.mask if kept.spec.mask_keeps else kept.mask
        given = {kept.spec.mask_input: mask, kept.spec.masked_input: masked}
        known = known.with_arrays({name: array for name, array in given.items() if name})
        if kept.spec.kind == "channels" or clean is None:
            return _Beginning(sample, start, None, known)
        blends = kept.spec.kind == "blend"
        return _Beginning(sample, start, KnownPicture(clean, kept.mask, noise if blends else None), known)

    def _with_low_resolution(self, low: LowResolutionSpec, known: Known, draw: Draw) -> Known:
        """The picture before this stage, as the stage takes it."""
        if low.source not in known.conditional:
            raise BundleError(f"the stage `{self.stage.name}` enlarges `{low.source}`, which nothing gives")
        picture = known.conditional[low.source].astype(np.float32)
        if picture.ndim != 4:
            raise BundleError(
                f"`{low.source}` of shape {list(picture.shape)} is no picture to enlarge", "export it again"
            )
        if low.quantised:
            levels = np.rint((picture.clip(-1, 1) + 1) * np.float32(127.5)) / np.float32(127.5)
            picture = levels.astype(np.float32) - np.float32(1)
        if low.resize != "none":
            picture = resize(picture, (self.task.shape[1], self.task.shape[2]), low.resize)
        arrays = {low.input: picture}
        if low.noise_level >= 0 and low.noise_schedule is not None:
            arrays[low.input] = add_noise(low.noise_schedule, picture, draw(picture.shape), low.noise_level)
        found = known.with_arrays(arrays)
        if low.noise_input:
            found = found.with_arrays({low.noise_input: np.array([max(low.noise_level, 0)], np.int64)})
        return found

    def _hooks(self, denoiser: BoundDenoiser, place: tuple[int, int]) -> Hooks:
        stage, told, scale = self.stage, self.task.hooks.on_step, self.task.request.gradient_guidance
        scale = stage.gradient_guidance if scale is None else scale
        timesteps = self.schedule.timesteps

        def on_step(done: StepDone) -> None:
            if told is not None:
                shown = lambda: preview(stage, done.denoised[0])  # noqa: E731 - drawn only where somebody looks
                told(PaintStep(stage.name, done.step, done.steps, *place, done.sample[0], shown))

        def gradient(sample: Array, index: int, filled: Array) -> None:
            denoiser.gradient(sample, filled, timesteps[index], scale)

        return Hooks(
            gradient=gradient if stage.gradient and scale > 0 else None,
            on_step=on_step if told is not None else None,
            should_cancel=self.task.hooks.should_cancel,
        )
