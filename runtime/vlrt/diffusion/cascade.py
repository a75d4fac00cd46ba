"""A diffusion bundle at work: prompts, photographs and stages, each loaded when it is needed and unloaded after."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import vlrt
from vlrt.bundle import Bundle
from vlrt.diffusion.conditions import Known
from vlrt.diffusion.generator import Generator
from vlrt.diffusion.memory import give_back
from vlrt.diffusion.photographs import to_picture
from vlrt.diffusion.prompt_cache import PromptCache
from vlrt.diffusion.prompts import PromptEncoder
from vlrt.diffusion.request import Choices, PaintHooks, PaintRequest
from vlrt.diffusion.sources import Encoder, Source
from vlrt.diffusion.stages import StageRun, StageTask
from vlrt.diffusion.tiles import tiles_wanted
from vlrt.diffusion_sections import DiffusionSpec, StageSpec
from vlrt.engines import Array, EngineOptions, Sessions
from vlrt.errors import BundleError, UsageError
from vlrt.picture_file import Painting


@dataclass(frozen=True)
class Job:
    """What a task hands to the cascade.

    Args:
        task: its name, for the pictures' parameters.
        shapes: of each stage's sample; the stages that run, in order.
        prompt: empty where the task or the bundle takes none.
        arrays: what is known besides, per picture; one for all where there is only one.
        source: a photograph that stages start from, or keep part of.
        parameters: of the task alone, to make the pictures again.
        one_seed: whether all pictures start from the noise of the first seed.
    """

    task: str
    shapes: Mapping[str, tuple[int, ...]]
    prompt: str = ""
    arrays: Sequence[Mapping[str, Array]] = ({},)
    source: Source = field(default_factory=Source)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    one_seed: bool = False


class Cascade:
    """Runs the stages of one bundle.

    Args:
        bundle: one with a diffusion section.
        options: device and threads.
        keep_loaded: keeps every graph in memory for the next call, as servers want it; else each stage is unloaded
            when it is done, and the peak is that of the largest one.

    Raises:
        BundleError: the bundle makes no pictures by diffusion.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None, keep_loaded: bool = False) -> None:
        if bundle.manifest.diffusion is None:
            raise BundleError(f"the bundle `{bundle.name}` has no diffusion section", "`vlrt models` lists those with")
        self.bundle = bundle
        self.spec: DiffusionSpec = bundle.manifest.diffusion
        self.sessions = Sessions(bundle, options)
        self.keep_loaded = keep_loaded
        self.prompts = PromptEncoder(bundle, self.spec, self.sessions, PromptCache())

    def stages_from(self, name: str) -> list[StageSpec]:
        """The stages from the one of that name on; all of them for an empty one."""
        names = [stage.name for stage in self.spec.stages]
        return list(self.spec.stages[names.index(name) if name else 0 :])

    def encoder(self, request: PaintRequest, rows: int, columns: int) -> Encoder:
        """What turns photographs of that many sample rows and columns into latents."""
        return Encoder(self.spec, self.sessions, tiles_wanted(self.spec.stages[0], (1, rows, columns), request.tiled))

    def embed(self, pixels: Array) -> Array:
        """The image embedding of preprocessed pixels [N, 3, H, W]: [N, D]."""
        spec = self.spec
        if spec.image is None or not spec.image_chain:
            raise BundleError(f"the bundle `{self.bundle.name}` has no image encoder", "choose another with `--model`")
        chain, name = spec.image_chain, spec.image.input
        found = [self.sessions.run_chain(chain, {name: pixels[i : i + 1]}) for i in range(len(pixels))]
        if spec.embedding not in found[0]:
            raise BundleError(f"no graph of `{self.bundle.name}` gives `{spec.embedding}`", "export the bundle again")
        self.release(chain)
        return np.concatenate([one[spec.embedding] for one in found])

    def release(self, roles: Iterable[str]) -> None:
        """Unloads graphs, unless all are to be kept."""
        if not self.keep_loaded:
            self.sessions.release(roles)
            give_back()

    def paint(self, job: Job, request: PaintRequest, hooks: PaintHooks) -> list[Painting]:
        """Makes the pictures of a job.

        Raises:
            UsageError: an option that a stage cannot do.
            EngineError: values that are not finite; stage and step are named.
            CancelledError: the hooks asked to stop.
        """
        stages = [stage for stage in self.spec.stages if stage.name in job.shapes]
        choices = Choices.of(request, stages)
        timings: dict[str, float] = {}
        started = time.perf_counter()
        known = self._known(job, request, choices)
        timings["prompt"] = time.perf_counter() - started
        seeds = [request.first_seed] * request.count if job.one_seed else request.seeds
        generators = [Generator(seed) for seed in seeds]
        passes: set[bool] = set()
        for stage in stages:
            started = time.perf_counter()
            task = StageTask(choices.stages[stage.name], job.shapes[stage.name], job.source, request, hooks)
            known, two_passes = self._run(task, known, generators)
            passes.add(two_passes)
            timings[stage.name] = time.perf_counter() - started
        finished = [self._finished(job, stages[-1], found) for found in known]
        parameters = self._parameters(job, choices)
        if request.two_pass is not None or True in passes:
            parameters["two_pass"] = True in passes
        return [
            Painting(to_picture(picture), {**parameters, "seed": seed}, timings)
            for picture, seed in zip(finished, seeds)
        ]

    def _run(
        self, task: StageTask, known: Sequence[Known], generators: Sequence[Generator]
    ) -> tuple[list[Known], bool]:
        """One stage for all pictures, and whether its rows were evaluated in two passes."""
        stage = task.choice.stage
        try:
            run = StageRun(task, self.sessions)
            samples = [run(before, drawn, (i, len(known))) for i, (before, drawn) in enumerate(zip(known, generators))]
            # The denoiser makes room for the graphs that turn its samples into pictures.
            self.release(run.roles)
            return [run.finish(*found) for found in samples], run.options.two_passes
        finally:
            self.release(stage.roles)

    def _finished(self, job: Job, last: StageSpec, known: Known) -> Array:
        """The picture [3, H, W] that the last stage gives."""
        found, (_, rows, columns) = known.conditional[last.output], job.shapes[last.name]
        expected = (1, 3, rows * last.factor, columns * last.factor)
        if found.shape != expected:
            what = f"the stage `{last.name}` gives a picture of shape {list(found.shape)}, expected {list(expected)}"
            raise BundleError(what, "export the bundle again")
        picture: Array = found[0]
        return picture

    def _known(self, job: Job, request: PaintRequest, choices: Choices) -> list[Known]:
        """What is known before the first stage, per picture."""
        arrays, unconditional = {}, {}
        if self.spec.prompts:
            texts = [job.prompt, request.negative] if choices.guided else [job.prompt]
            arrays, *rest = self.prompts.encode(texts)
            unconditional = rest[0] if rest else {}
            self.release(self.prompts.roles)
        if self.spec.label_input:
            arrays = {**arrays, self.spec.label_input: np.array([self.label(request.label)], np.int64)}
        given = list(job.arrays) * (request.count if len(job.arrays) == 1 else 1)
        if len(given) != request.count:
            raise UsageError(f"there are {len(given)} starting points for {request.count} pictures")
        return [Known({**arrays, **own}, unconditional) for own in given]

    def label(self, given: int | str | None) -> int:
        """The number of a class given by name or number.

        Raises:
            UsageError: none was given, or there is no such class.
        """
        labels = self.spec.labels
        if given is None:
            raise UsageError("the model paints one of its classes, and none was named", "--label NAME or NUMBER")
        if isinstance(given, str) and given in labels:
            return labels.index(given)
        number = int(given) if isinstance(given, int) or str(given).isdecimal() else -1
        if number < 0 or (labels and number >= len(labels)):
            shown = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
            raise UsageError(
                f"there is no class `{given}`", f"a number below {len(labels)}, or one of {shown}" if labels else ""
            )
        return number

    def _parameters(self, job: Job, choices: Choices) -> dict[str, Any]:
        """What makes the pictures again; options at their default stay out where they change nothing."""
        request, described = choices.request, self.bundle.manifest
        last = [stage for stage in self.spec.stages if stage.name in job.shapes][-1]
        rows, columns = job.shapes[last.name][1:]
        found: dict[str, Any] = {
            "task": job.task,
            "bundle": self.bundle.name,
            "source": described.source.origin,
            "revision": described.source.revision,
            "seed": request.first_seed,
            "steps": {name: choice.steps for name, choice in choices.stages.items()},
            "guidance": {name: choice.guidance for name, choice in choices.stages.items()},
            "scheduler": {name: choice.rule for name, choice in choices.stages.items()},
            "height": rows * last.factor,
            "width": columns * last.factor,
        }
        if self.spec.prompts:
            found |= {"prompt": job.prompt, "negative": request.negative}
        for name in ("guidance_rescale", "gradient_guidance", "label", "tiled"):
            value = getattr(request, name)
            if value is not None:
                found[name] = value
        if request.eta:
            found["eta"] = request.eta
        if request.guidance_interval != (0.0, 1.0):
            found["guidance_interval"] = list(request.guidance_interval)
        found |= dict(job.parameters)
        loaded = [name for name in ("onnxruntime", "openvino") if name in sys.modules]
        versions = {"vlrt": vlrt.__version__} | {name: str(sys.modules[name].__version__) for name in loaded}
        return {**found, "device": self.sessions.options.device, "versions": versions}
