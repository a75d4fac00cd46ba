"""From the image chain's outputs to token sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlrt.decode.binding import BoundLoop, StepModel
from vlrt.decode.buffers import Array, StepBuffers
from vlrt.decode.concat import generate_concat
from vlrt.decode.loop import Hypothesis, Loop, OnToken, ShouldCancel, Step, Task
from vlrt.decode.options import DecodeOptions
from vlrt.errors import UsageError


def generate(
    step_model: StepModel,
    initial: Mapping[str, Array],
    options: DecodeOptions,
    *,
    prompts: Sequence[Sequence[int]] | None = None,
    unconditional: Mapping[str, Array] | None = None,
    unconditional_prompts: Sequence[Sequence[int]] | None = None,
    on_token: OnToken | None = None,
    should_cancel: ShouldCancel | None = None,
    watch: Step | None = None,
) -> list[list[Hypothesis]]:
    """Decodes a batch of images with a decoder graph.

    Args:
        step_model: the decoder.
        initial: outputs of the image chain by name [images, …]: first states and memory; others are ignored.
        options: how tokens are chosen.
        prompts: ids per image; the manifest's start ids where `None`.
        unconditional: with a `guidance_scale` above 1, what `initial` would be for a prompt that says nothing, for as
            many images; the model then runs two rows for each hypothesis, with the same tokens.
        unconditional_prompts: with guidance, ids that stand for no prompt; `prompts` where `None`, for models whose
            prompt is in `initial`.
        on_token: called with (image, id): with one beam as each token is chosen; with several as soon as
            every hypothesis that may still be returned agrees on it, so that nothing is ever taken back. In
            the end it has seen the tokens of each image's first hypothesis (not so after a cancel). What it
            raises ends the decoding and is passed on.
        should_cancel: asked before every step; true ends the decoding, and what is there is returned:
            finished hypotheses and, as `finished=False`, live ones; an empty one before the first token.
        watch: shown the buffers before every call of the step graph: what each row is about to read, and where.

    Returns:
        Per image its hypotheses, best first (samples: in the order drawn); fewer than asked for only where
        fewer exist.

    Raises:
        UsageError: options that this decoder cannot serve.
        VlrtError: an initial value is missing or has the wrong shape, or the model's scores are not finite.
    """
    values = step_model.initial_values(initial)
    prompts = _prompts(step_model, values, prompts)
    nothing = _unconditional(step_model, values, unconditional) if options.lanes == 2 else {}
    spec = step_model.spec
    options.check_vocabulary(spec.vocabulary)
    longest = max(map(len, prompts))
    if longest >= spec.max_length:
        what = f"a prompt has {longest} tokens with its start, this decoder has room for {spec.max_length}"
        raise UsageError(what, "give a shorter one")
    if longest + options.max_new_tokens > spec.max_length:
        most = spec.max_length - longest
        raise UsageError(f"`max_new_tokens` is {options.max_new_tokens}, this decoder has room for {most}")
    if spec.concatenates:
        if options.lanes == 2:
            raise UsageError("this decoder was exported by others and is not guided", "leave out `guidance_scale`")
        return generate_concat(step_model, values, prompts, options, on_token, should_cancel)
    task = Task(prompts, spec.end_ids, values, unconditional=nothing, unconditional_prompts=unconditional_prompts)
    with step_model.loop(values, prompts, options) as bound:
        return bound.loop.run(_watched(bound, watch), task, options, on_token, should_cancel)


def _watched(bound: BoundLoop, watch: Step | None) -> Step:
    if watch is None:
        return bound

    def step(buffers: StepBuffers) -> None:
        watch(buffers)
        bound(buffers)

    return step


def _unconditional(
    step_model: StepModel, values: Mapping[str, Array], given: Mapping[str, Array] | None
) -> Mapping[str, Array]:
    if given is None and values:
        what = "guidance needs what the model makes of an empty prompt"
        raise UsageError(what, "give `unconditional`, or leave out `guidance_scale`")
    return step_model.initial_values(given or {})


def _prompts(
    step_model: StepModel, values: Mapping[str, Array], prompts: Sequence[Sequence[int]] | None
) -> Sequence[Sequence[int]]:
    counts = {len(array) for array in values.values()}
    if prompts is not None:
        counts.add(len(prompts))
    if len(counts) != 1 or 0 in counts:
        raise UsageError(f"initial values and prompts are for {sorted(counts)} images, expected one number")
    if prompts is None:
        return [step_model.spec.start_ids] * counts.pop()
    for prompt in prompts:
        if not prompt or not all(0 <= token < step_model.spec.vocabulary for token in prompt):
            raise UsageError(f"prompt {list(prompt)} needs ids from 0 to {step_model.spec.vocabulary - 1}")
    return prompts


def decode(
    loop: Loop,
    step: Step,
    task: Task,
    options: DecodeOptions,
    *,
    on_token: OnToken | None = None,
    should_cancel: ShouldCancel | None = None,
) -> list[list[Hypothesis]]:
    """Decodes with any forward pass: a NumPy function, or an engine of the caller's own.

    Args:
        loop: buffers large enough for the task.
        step: reads the inputs in `StepBuffers` and fills its outputs; called once for the prompts with one
            row per image (token by token where the loop's width is 1), then once per token.
        task: prompts, end ids and initial values.
        options, on_token, should_cancel: as for `generate`.

    Returns:
        As `generate`.
    """
    options.check_vocabulary(loop.shape.vocabulary)
    return loop.run(step, task, options, on_token, should_cancel)
