"""Decoding with graphs whose caches grow by concatenation, as Optimum and transformers.js export them.

The loop, its search and its options are the same as for our own graphs; only the forward pass differs: the caches are
new tensors after every call, and what comes from the image is repeated for each hypothesis, because these graphs know
nothing of beams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vlrt.decode.binding import StepModel, StepSession
from vlrt.decode.buffers import Array, LoopShape, RowTensor, StepBuffers
from vlrt.decode.loop import Hypothesis, Loop, OnToken, ShouldCancel, Task
from vlrt.decode.options import DecodeOptions
from vlrt.errors import BundleError
from vlrt.manifest import DecodeSpec, GraphSpec

_PARENT, _IMAGE = "parent", "image"
"""States of the loop itself: which row a row continues, and whose image it is."""

_ROW_STATES = tuple(RowTensor(name, (1,), "int64") for name in (_PARENT, _IMAGE))
_POSITIONS, _MASK, _MEMORY_MASK, _BRANCH = (
    "position_ids",
    "attention_mask",
    "encoder_attention_mask",
    "use_cache_branch",
)


def generate_concat(
    step_model: StepModel,
    values: Mapping[str, Array],
    prompts: Sequence[Sequence[int]],
    options: DecodeOptions,
    on_token: OnToken | None = None,
    should_cancel: ShouldCancel | None = None,
) -> list[list[Hypothesis]]:
    """Decodes a batch of images; see `vlrt.decode.generate`.

    Rows of one call share the length of their caches, so images whose prompts differ in length are decoded one
    length after the other.

    Args:
        step_model: a decoder with ``kv_concat`` states.
        values: memory by input name [images, …].

    Raises:
        BundleError: a graph has an input that nothing explains.
    """
    found: list[list[Hypothesis]] = [[] for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        images = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        told = partial(_tell, on_token, images) if on_token else None
        chosen = {name: array[images] for name, array in values.items()}
        results = _decode(step_model, chosen, [prompts[i] for i in images], options, told, should_cancel)
        for image, hypotheses in zip(images, results):
            found[image] = hypotheses
    return found


def _tell(on_token: OnToken, images: Sequence[int], place: int, token: int) -> None:
    on_token(images[place], token)


def _decode(
    step_model: StepModel,
    values: Mapping[str, Array],
    prompts: Sequence[Sequence[int]],
    options: DecodeOptions,
    on_token: OnToken | None,
    should_cancel: ShouldCancel | None,
) -> list[list[Hypothesis]]:
    count, spec = len(prompts), step_model.spec
    loop = Loop(
        LoopShape(
            vocabulary=spec.vocabulary,
            max_images=count,
            max_rows=count * options.rows_per_image,
            max_steps=options.max_new_tokens,
            max_width=len(prompts[0]),
            recurrent=_ROW_STATES,
        )
    )
    rows = np.arange(count, dtype=np.int64)[:, None]
    task = Task(prompts, spec.end_ids, {_PARENT: rows, _IMAGE: rows})
    return loop.run(_ConcatStep(step_model, values), task, options, on_token, should_cancel)


class _ConcatStep:
    """The forward pass of one run, and the caches it has so far."""

    def __init__(self, step_model: StepModel, values: Mapping[str, Array]) -> None:
        self._spec: DecodeSpec = step_model.spec
        self._first, self._later = step_model.prefill, step_model.session
        self._memory = dict(values)
        self._caches: dict[str, Array] = {}
        self._repeated: dict[str, Array] = {}
        self._images: NDArray[np.int64] = np.zeros(0, np.int64)
        self._length = 0

    def __call__(self, buffers: StepBuffers) -> None:
        """One forward pass over `buffers`."""
        images, parents = (buffers.states[name][:, 0] for name in (_IMAGE, _PARENT))
        session = self._later if self._length else self._first
        self._follow(parents)
        self._repeat(images)
        arrays = self._inputs(session.spec, buffers)
        outputs = session.run(**{t.name: _given(arrays, t.name, session) for t in session.spec.inputs})
        self._keep(outputs, images)
        self._length += buffers.width
        buffers.logits[:] = outputs[self._spec.logits][:, -1]
        buffers.next_states[_PARENT][:, 0] = np.arange(buffers.rows)
        buffers.next_states[_IMAGE][:] = buffers.states[_IMAGE]

    def _follow(self, parents: NDArray[np.int64]) -> None:
        """Rows take over their parents' caches."""
        for name, cache in self._caches.items():
            if len(parents) != len(cache) or (parents != np.arange(len(cache))).any():
                self._caches[name] = cache[parents]

    def _repeat(self, images: NDArray[np.int64]) -> None:
        """What comes from the images, for every row; made again only when rows come or go."""
        if not np.array_equal(images, self._images) or set(self._repeated) != set(self._memory):
            self._images = images.copy()
            self._repeated = {name: memory[images] for name, memory in self._memory.items()}

    def _inputs(self, graph: GraphSpec, buffers: StepBuffers) -> dict[str, Array]:
        total = self._length + buffers.width
        arrays: dict[str, Array] = {
            self._spec.token: buffers.tokens,
            _POSITIONS: buffers.positions,
            _MASK: np.ones((buffers.rows, total), np.int64),
            _BRANCH: np.array([self._length > 0]),
        }
        arrays |= self._repeated
        lengths = [array.shape[1] for array in self._repeated.values() if array.ndim == 3]
        if lengths:
            arrays[_MEMORY_MASK] = np.ones((buffers.rows, lengths[0]), np.int64)
        return arrays | (self._caches if self._length else self._empty(graph, buffers.rows, lengths))

    def _empty(self, graph: GraphSpec, rows: int, lengths: Sequence[int]) -> dict[str, Array]:
        """Caches for a graph that takes them in its first call too, where it reads none of them."""
        found: dict[str, Array] = {}
        names = {tensor.name for tensor in graph.inputs}
        for state in self._spec.states:
            if not state.output or state.input not in names:
                continue
            tensor = graph.input(state.input)
            length = lengths[0] if state.kind == "memory" and lengths else 0
            shape = [rows, *(length if isinstance(axis, str) else axis for axis in tensor.shape[1:])]
            found[state.input] = np.zeros(shape, tensor.dtype)
        return found

    def _keep(self, outputs: Mapping[str, Array], images: NDArray[np.int64]) -> None:
        for state in self._spec.states:
            if state.kind == "kv_concat":
                self._caches[state.input] = outputs[state.output]
            elif state.kind == "memory" and state.output and not self._length:
                # The first call has one row per image, in the order of the loop's slots.
                self._memory[state.input] = outputs[state.output][np.argsort(images)]


def _given(arrays: Mapping[str, Array], name: str, session: StepSession) -> Array:
    if name not in arrays:
        raise BundleError(f"`{session.spec.file}` has the input `{name}`, which this runtime cannot fill")
    return arrays[name]
