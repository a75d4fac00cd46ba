"""A decoder's step graph bound to the loop's buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from vlrt.decode.buffers import Array, LoopShape, RowTensor, StepBuffers
from vlrt.decode.loop import Loop
from vlrt.decode.options import DecodeOptions
from vlrt.decode.resident import DeviceStepSession, ResidentStates
from vlrt.errors import BundleError, UsageError
from vlrt.manifest import DecodeSpec, GraphSpec, StateSpec, TensorSpec

_CACHE_GRAIN = 32
_IDLE_LOOPS = 4
"""Loops kept for the next call; more than that were needed by threads at once and are dropped after it."""


class StepSession(Protocol):
    """What decoding needs of an engine; every `vlrt.engines.Session` has it."""

    spec: GraphSpec

    def run(self, **arrays: Array) -> dict[str, Array]:
        """Runs the graph once; arrays by input name, results by output name."""

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        """Binds buffers by name once; calling the result runs the graph over whatever they hold then."""


class StepModel:
    """One decoder: its manifest section and the session of its step graph.

    Loops (buffers and bindings) are made once and used again; threads may generate at once, each with its own.

    Args:
        spec: the manifest's decode section.
        session: the loaded step graph. Besides the inputs that `spec` names it may take `position` [R, W] int64,
            `past_length`, `new_length`, `last_position` [R] int32 and `total_length` [1] int32, the last two also for
            each pattern, `last_position.<name>`; see `StepBuffers`. Graphs whose caches grow by concatenation are
            served by `vlrt.decode.concat`.
        prefill: the graph of the first call, where `spec` names another one.

    Raises:
        BundleError: the graph has an input or a state that this runtime cannot serve.
    """

    def __init__(self, spec: DecodeSpec, session: StepSession, prefill: StepSession | None = None) -> None:
        self.spec = spec
        self.session = session
        self.prefill = prefill or session
        self._idle: list[BoundLoop] = []
        self._lock = threading.Lock()

    @classmethod
    def open(cls, spec: DecodeSpec, session: Callable[[str], StepSession]) -> StepModel:
        """The decoder of a bundle; `session` gives a loaded graph by its role."""
        return cls(spec, session(spec.step), session(spec.prefill) if spec.prefill else None)

    @property
    def takes_prompts_at_once(self) -> bool:
        """Whether one call takes several tokens per row."""
        shape = self.session.spec.input(self.spec.token).shape
        return len(shape) == 2 and shape[1] != 1

    @contextmanager
    def loop(
        self, initial: Mapping[str, Array], prompts: Sequence[Sequence[int]], options: DecodeOptions
    ) -> Iterator[BoundLoop]:
        """Lends a loop that is large enough for the task.

        Raises:
            BundleError: the caches grow by concatenation.
        """
        if self.spec.concatenates:
            what = f"`{self.session.spec.file}` concatenates its caches, so it generates but does not score"
            raise BundleError(what, "export the model with `vlrt export`")
        shape = self.shape(initial, prompts, options)
        bound = self._take(shape)
        try:
            yield bound
        finally:
            with self._lock:
                self._idle.append(bound)
                del self._idle[:-_IDLE_LOOPS]

    def holds(self, shape: LoopShape) -> bool:
        """Whether a loop that is large enough lies ready, so that nothing need be allocated."""
        with self._lock:
            return any(_serves(bound.loop.shape, shape) for bound in self._idle)

    def _take(self, shape: LoopShape) -> BoundLoop:
        with self._lock:
            for bound in self._idle:
                if _serves(bound.loop.shape, shape):
                    self._idle.remove(bound)
                    bound.restart()
                    return bound
        return BoundLoop(self, Loop(shape))

    def initial_values(self, images: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of the image chain, by the names of the step graph's inputs."""
        wanted = [s for s in self.spec.states if s.kind == "recurrent" or (s.kind == "memory" and not s.output)]
        for state in wanted:
            if state.source not in images:
                raise BundleError(f"state `{state.input}` starts from `{state.source}`, which was not given")
        return {state.input: images[state.source] for state in wanted}

    def shape(
        self, initial: Mapping[str, Array], prompts: Sequence[Sequence[int]], options: DecodeOptions
    ) -> LoopShape:
        """What a loop for such a task would allocate."""
        graph, states = self.session.spec, self.spec.states
        axes = self._axes(initial)
        width = max(map(len, prompts)) if self.takes_prompts_at_once else 1
        for pattern in self.spec.patterns:
            width = min(width, pattern.text + 1)  # up to there every pattern sees all that is earlier
        longest = self._positions(max(map(len, prompts)) + options.max_new_tokens)

        def tensors(kind: str) -> tuple[RowTensor, ...]:
            return tuple(_row_tensor(graph.input(s.input), axes) for s in states if s.kind == kind)

        return LoopShape(
            vocabulary=self.spec.vocabulary,
            max_images=len(prompts) * options.lanes,
            max_rows=len(prompts) * options.rows_per_image,
            max_steps=options.max_new_tokens,
            max_width=width,
            caches=tuple(self._cache(s, longest) for s in states if s.kind == "kv"),
            recurrent=tensors("recurrent"),
            memory=tensors("memory"),
            noise=tensors("noise"),
            records=tuple(_row_tensor(graph.output(r.output), axes) for r in self.spec.records),
            patterns=self.spec.patterns,
            shifts=tuple(
                replace(_row_tensor(graph.input(s.input), axes), pattern=s.pattern) for s in states if s.kind == "shift"
            ),
            on_device=isinstance(self.session, DeviceStepSession),
        )

    def _positions(self, needed: int) -> int:
        """Positions of a cache: what the task needs, rounded up so that the next task may find it large enough."""
        return min(self.spec.max_length, -(-needed // _CACHE_GRAIN) * _CACHE_GRAIN)

    def _cache(self, state: StateSpec, longest: int) -> RowTensor:
        """A cache; its named axis is that of the positions."""
        spec = self.session.spec.input(state.input)
        for pattern in self.spec.patterns:
            if pattern.name == state.pattern:
                longest = pattern.positions
        shape = tuple(longest if isinstance(axis, str) else axis for axis in spec.shape[1:])
        return RowTensor(spec.name, shape, spec.dtype, state.pattern)

    def _axes(self, initial: Mapping[str, Array]) -> dict[str, int]:
        """Sizes of the named axes that the initial values decide, e.g. regions of the image."""
        axes: dict[str, int] = {}
        for name, array in initial.items():
            spec = self.session.spec.input(name)
            if array.ndim != len(spec.shape):
                raise UsageError(f"`{name}` has {array.ndim} axes, expected {len(spec.shape)}")
            for size, axis in zip(array.shape[1:], spec.shape[1:]):
                if isinstance(axis, str):
                    axes[axis] = size
        return axes


class BoundLoop:
    """A loop whose buffers are bound to a session, once per number of rows, width and images."""

    def __init__(self, model: StepModel, loop: Loop) -> None:
        self.loop = loop
        self._model = model
        self._bound: dict[tuple[int, int, int], Callable[[], None]] = {}
        session = model.session
        self._resident: ResidentStates | None = None
        if isinstance(session, DeviceStepSession):
            self._resident = ResidentStates(session, model.spec, loop.shape)
            self._whole = loop.buffers(loop.shape.max_rows, 1, loop.shape.max_images)

    def restart(self) -> None:
        """Another run begins."""
        if self._resident is not None:
            self._resident.restart()

    def __call__(self, buffers: StepBuffers) -> None:
        """One forward pass over `buffers`."""
        key = (buffers.rows, buffers.width, buffers.images)
        run = self._bound.get(key)
        if run is None:
            run = self._bound[key] = self._bind(buffers)
        if self._resident is not None:
            self._resident.prepare(buffers, self._whole)
        run()

    def _bind(self, buffers: StepBuffers) -> Callable[[], None]:
        model, graph = self._model, self._model.session.spec
        inputs, outputs = self._named(buffers)
        names = {tensor.name for tensor in graph.inputs}
        missing = sorted(names - set(inputs))
        if missing:
            raise BundleError(f"`{graph.file}` has the input `{missing[0]}`, which no state explains")
        for spec in graph.outputs:
            # The engine writes every output somewhere; what nobody keeps goes into an array of its own.
            if spec.name not in outputs:
                outputs[spec.name] = _unused_output(spec, graph.input(model.spec.token), buffers)
        return model.session.bind({name: inputs[name] for name in names}, outputs)

    def _named(self, buffers: StepBuffers) -> tuple[dict[str, Any], dict[str, Any]]:
        spec = self._model.spec
        flat = len(self._model.session.spec.input(spec.token).shape) == 1
        inputs: dict[str, Any] = {
            spec.token: buffers.tokens[:, 0] if flat else buffers.tokens,
            "position": buffers.positions[:, 0] if flat else buffers.positions,
            "past_length": buffers.past_lengths,
            "new_length": buffers.new_lengths,
            "last_position": buffers.last_positions,
            "total_length": buffers.total_length,
        }
        inputs |= {f"last_position.{name}": array for name, array in buffers.pattern_last.items()}
        inputs |= {f"total_length.{name}": array for name, array in buffers.pattern_total.items()}
        for given in (buffers.states, buffers.caches, buffers.memory, buffers.noise):
            inputs |= given
        outputs: dict[str, Any] = {spec.logits: buffers.logits, **buffers.records}
        for state in spec.states:
            if state.input in buffers.next_states:
                outputs[state.output] = buffers.next_states[state.input]
            elif state.input in buffers.caches:
                outputs[state.output] = buffers.caches[state.input]
        if self._resident is not None:
            inputs |= self._resident.inputs(buffers)
            outputs |= self._resident.outputs(buffers)
        return inputs, outputs


def _serves(have: LoopShape, need: LoopShape) -> bool:
    sizes = ("max_images", "max_rows", "max_steps", "max_width")
    enough = all(getattr(have, name) >= getattr(need, name) for name in sizes)
    # A loop of width 1 reads prompts token by token; a wider one would not.
    same_kind = (have.max_width == 1) == (need.max_width == 1)
    tensors = ("recurrent", "memory", "noise", "records", "patterns", "shifts")
    same = all(getattr(have, name) == getattr(need, name) for name in tensors)
    long_enough = all(ours.shape[1] >= theirs.shape[1] for ours, theirs in zip(have.caches, need.caches))
    return enough and same_kind and same and long_enough


def _row_tensor(spec: TensorSpec, axes: Mapping[str, int]) -> RowTensor:
    shape: list[int] = []
    for axis in spec.shape[1:]:
        size: Any = axes.get(axis) if isinstance(axis, str) else axis
        if size is None:
            raise BundleError(f"axis `{axis}` of `{spec.name}` is not decided by any initial value")
        shape.append(size)
    return RowTensor(spec.name, tuple(shape), spec.dtype)


def _unused_output(spec: TensorSpec, token: TensorSpec, buffers: StepBuffers) -> Array:
    sizes = dict.fromkeys(token.shape[:1], buffers.rows)
    shape = [sizes.get(axis, axis) for axis in spec.shape]
    if not all(isinstance(size, int) for size in shape):
        raise BundleError(f"output `{spec.name}` has the shape {list(spec.shape)}, which nothing decides")
    return np.empty([int(size) for size in shape], spec.dtype)
