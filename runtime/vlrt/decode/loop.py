"""The C++ loop and its buffers as NumPy arrays, without copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from vlrt import _C
from vlrt.attention_patterns import PatternSpec
from vlrt.decode.buffers import Array, LoopShape, RowTensor, StepBuffers
from vlrt.decode.options import DecodeOptions
from vlrt.errors import VlrtError

OnToken = Callable[[int, int], object]
ShouldCancel = Callable[[], bool]


Step = Callable[[StepBuffers], object]

_SAME_NAME = (
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
    *("min_length", "min_new_tokens", "max_new_tokens"),
    *("temperature", "top_k", "top_p", "min_p", "typical_p"),
)


@dataclass(frozen=True)
class Hypothesis:
    """One decoded sequence.

    Args:
        tokens: generated ids, the end id included where it was generated.
        score: what hypotheses are ranked by: log-probability / length ** `length_penalty`.
        log_probability: sum over the tokens, natural logarithm; for greedy and sampling that of the model's
            own distribution, in beam search that of the processed scores (as transformers).
        records: by name [len(tokens), …]: the step output that went with the choice of each token.
        finished: whether it ended with an end id.
    """

    tokens: tuple[int, ...]
    score: float
    log_probability: float
    records: dict[str, Array] = field(default_factory=dict)
    finished: bool = True


@dataclass(frozen=True)
class Task:
    """What one run of a loop decodes.

    Args:
        prompts: ids per image, at least one each.
        end_ids: ids that end a sequence.
        initial: by name [images, …]: the first value of every recurrent state, and the memory.
        unconditional: with guidance, the same for prompts that say nothing.
        unconditional_prompts: with guidance, their ids, as many as `prompts` and each as long; `prompts` where `None`.
        prefix_length: cache positions of every image that the caller has filled.
        keep_records: whether hypotheses come with their records.
    """

    prompts: Sequence[Sequence[int]]
    end_ids: tuple[int, ...]
    initial: Mapping[str, Array] = field(default_factory=dict)
    prefix_length: int = 0
    keep_records: bool = True
    unconditional: Mapping[str, Array] = field(default_factory=dict)
    unconditional_prompts: Sequence[Sequence[int]] | None = None

    def lanes(self, guided: bool) -> Task:
        """The task with every image's unconditional twin behind it where it is guided, else without any."""
        if not guided:
            return replace(self, unconditional={}, unconditional_prompts=None)
        twins = self.prompts if self.unconditional_prompts is None else self.unconditional_prompts
        if [len(prompt) for prompt in twins] != [len(prompt) for prompt in self.prompts]:
            raise VlrtError("unconditional prompts differ from the prompts in number or length", "pad them alike")
        prompts = [prompt for pair in zip(self.prompts, twins) for prompt in pair]
        initial = {name: _interleaved(name, array, self.unconditional) for name, array in self.initial.items()}
        return replace(self, prompts=prompts, initial=initial)


class Loop:
    """A decoder with buffers of one `LoopShape`; one run at a time, any number of loops side by side."""

    def __init__(self, shape: LoopShape) -> None:
        self.shape = shape
        self._decoder = _C.Decoder(
            vocabulary=shape.vocabulary,
            max_images=shape.max_images,
            max_rows=shape.max_rows,
            max_steps=shape.max_steps,
            max_width=shape.max_width,
            patterns=[(pattern.name, pattern.text, pattern.visible()) for pattern in shape.patterns],
            caches=[
                (c.name, *c.shape, np.dtype(c.dtype).itemsize, _place(c, shape.patterns)) for c in shape.own_caches
            ],
            recurrent=_rows(shape.recurrent),
            shifts=[_shift(state, shape.patterns) for state in shape.shifts],
            memory=_rows(shape.memory),
            noise=_rows(shape.noise),
            records=_rows(shape.records),
        )
        self._buffers: dict[tuple[int, int, int], StepBuffers] = {}

    def buffers(self, rows: int, width: int = 1, images: int = 1) -> StepBuffers:
        """The first rows of every buffer; the same views every time."""
        key = (rows, width, images)
        if key not in self._buffers:
            self._buffers[key] = self._make_buffers(rows, width, images)
        return self._buffers[key]

    def _make_buffers(self, rows: int, width: int, images: int) -> StepBuffers:
        decoder, shape = self._decoder, self.shape
        return StepBuffers(
            rows=rows,
            width=width,
            images=images,
            tokens=decoder.tokens[: rows * width].reshape(rows, width),
            positions=decoder.positions[: rows * width].reshape(rows, width),
            past_lengths=decoder.past_lengths[:rows],
            new_lengths=decoder.new_lengths[:rows],
            last_positions=decoder.last_positions[:rows],
            total_length=decoder.total_length,
            sources=decoder.sources[:rows],
            logits=decoder.logits[:rows],
            caches={t.name: _typed(decoder.cache(t.name), t, rows) for t in shape.own_caches},
            states={t.name: _typed(decoder.state_input(t.name), t, rows) for t in shape.recurrent}
            | {t.name: _typed(decoder.shift_input(t.name), t, rows) for t in shape.shifts},
            next_states={t.name: _typed(decoder.state_output(t.name), t, rows) for t in shape.recurrent}
            | {t.name: _typed(decoder.shift_output(t.name), t, rows) for t in shape.shifts},
            memory={t.name: _typed(decoder.memory(t.name), t, images) for t in shape.memory},
            noise={t.name: _typed(decoder.noise(t.name), t, rows) for t in shape.noise},
            records={t.name: _typed(decoder.record(t.name), t, rows) for t in shape.records},
            pattern_last={p.name: decoder.pattern_last(p.name)[:rows] for p in shape.patterns},
            pattern_total={p.name: decoder.pattern_total(p.name) for p in shape.patterns},
        )

    def run(
        self,
        step: Step,
        task: Task,
        options: DecodeOptions,
        on_token: OnToken | None = None,
        should_cancel: ShouldCancel | None = None,
    ) -> list[list[Hypothesis]]:
        """Decodes; see `vlrt.decode.decode`."""
        task = task.lanes(options.lanes == 2)
        images = len(task.prompts)
        try:
            found = self._decoder.run(
                search=_search_options(options, task.end_ids),
                logits=_logits_options(options, task.end_ids),
                seed=options.seed,
                prompts=task.prompts,
                recurrent=[_initial(task.initial, tensor, images) for tensor in self.shape.recurrent],
                memory=[_initial(task.initial, tensor, images) for tensor in self.shape.memory],
                step=lambda rows, width, images: step(self.buffers(rows, width, images)),
                on_token=on_token,
                should_cancel=should_cancel,
                prefix_length=task.prefix_length,
                keep_records=task.keep_records,
                guidance_scale=options.guidance_scale,
            )
        except _C.ScoreError as error:
            raise VlrtError(f"decoding stopped at {error}", _score_hint(str(error))) from None
        convert = partial(_hypothesis, self.shape.records)
        return [[convert(hypothesis) for hypothesis in image] for image in found]


def _score_hint(message: str) -> str:
    if "no token" in message:
        return "the options forbid every token: allow more in `suppress_tokens`, `bad_words_ids` and the like"
    return "`vlrt verify BUNDLE` checks the model"


def _place(cache: RowTensor, patterns: Sequence[PatternSpec]) -> int | None:
    return [pattern.name for pattern in patterns].index(cache.pattern) if cache.pattern else None


def _shift(state: RowTensor, patterns: Sequence[PatternSpec]) -> tuple[str, int, int, int]:
    (pattern,) = (pattern for pattern in patterns if pattern.name == state.pattern)
    return state.name, state.row_bytes, pattern.text, pattern.grid[1]


def _rows(tensors: Sequence[RowTensor]) -> list[tuple[str, int]]:
    return [(tensor.name, tensor.row_bytes) for tensor in tensors]


def _typed(raw: Array, tensor: RowTensor, rows: int) -> Array:
    return raw[:rows].view(tensor.dtype).reshape(rows, *tensor.shape)


def _initial(given: Mapping[str, Array], tensor: RowTensor, images: int) -> Array:
    if tensor.name not in given:
        raise VlrtError(f"the initial value of `{tensor.name}` is missing", "export the bundle again")
    array = given[tensor.name]
    if array.shape != (images, *tensor.shape) or array.dtype != np.dtype(tensor.dtype):
        got = f"{array.dtype} {list(array.shape)}"
        raise VlrtError(f"`{tensor.name}` is {got}, expected {tensor.dtype} {[images, *tensor.shape]}")
    return np.ascontiguousarray(array)


def _interleaved(name: str, conditional: Array, unconditional: Mapping[str, Array]) -> Array:
    """Rows of both lanes, image by image."""
    other = unconditional.get(name)
    if other is None or other.shape != conditional.shape:
        got = "missing" if other is None else f"{list(other.shape)}"
        what = f"the unconditional value of `{name}` is {got}, expected {list(conditional.shape)}"
        raise VlrtError(what, "guidance needs the chain's outputs for an empty prompt of the same length")
    return np.stack([conditional, other], 1).reshape(-1, *conditional.shape[1:])


def _hypothesis(records: Sequence[RowTensor], found: _C.Hypothesis) -> Hypothesis:
    kept = {
        tensor.name: np.ascontiguousarray(raw).reshape(-1).view(tensor.dtype).reshape(len(raw), *tensor.shape)
        for tensor, raw in zip(records, found.records)
    }
    return Hypothesis(tuple(found.tokens), found.score, found.log_probability, kept, found.finished)


def _search_options(options: DecodeOptions, end_ids: tuple[int, ...]) -> _C.SearchOptions:
    native = _C.SearchOptions()
    native.rule = _C.Rule.classic if options.rule == "classic" else _C.Rule.hf
    native.early_stopping = {
        False: _C.EarlyStopping.off,
        True: _C.EarlyStopping.on,
        "never": _C.EarlyStopping.never,
    }[options.early_stopping]
    native.end_ids = list(end_ids)
    for name in ("num_beams", "num_return_sequences", "max_new_tokens", "length_penalty", "do_sample"):
        setattr(native, name, getattr(options, name))
    return native


def _logits_options(options: DecodeOptions, end_ids: tuple[int, ...]) -> _C.LogitsOptions:
    native = _C.LogitsOptions()
    for name in _SAME_NAME:
        setattr(native, name, getattr(options, name))
    if options.min_new_tokens:
        native.min_length = 0  # transformers: where both are given, this one counts
    native.end_ids = list(end_ids)
    native.forced_eos_ids = list(options.forced_eos_ids)
    if options.forced_bos_token_id is not None:
        native.forced_bos_id = options.forced_bos_token_id
    native.warp = options.do_sample
    native.min_tokens_to_keep = len(end_ids) + 1 if options.num_beams > 1 else 1
    native.renormalize = options.renormalize_logits
    return native
