"""The loop around the search: buffers, prompts, streaming, cancelling, failing, threads."""

from __future__ import annotations

import gc
import sys
import threading
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vlrt.decode import DecodeOptions, Hypothesis, Loop, LoopShape, RowTensor, StepBuffers, Task, decode
from vlrt.errors import VlrtError

VOCABULARY, END = 40, 1
rng = np.random.default_rng(11)
EMBEDDING = rng.standard_normal((VOCABULARY, 8)).astype(np.float32)
RECUR = rng.standard_normal((8, 8)).astype(np.float32)
OUTPUT = (rng.standard_normal((8, VOCABULARY)) * 2).astype(np.float32)


def recurrent_step(b: StepBuffers) -> None:
    """A small recurrent network; what it says depends on the whole history, the image and the noise."""
    image = np.repeat(b.memory["image"], b.rows // b.images, 0)
    hidden = np.tanh(b.states["h"] @ RECUR + EMBEDDING[b.tokens[:, 0]] + image)
    b.next_states["h"][:] = hidden
    b.logits[:] = hidden @ OUTPUT
    b.records["hidden"][:] = hidden
    b.records["noise_seen"][:] = b.noise["u"]


def make_loop(images: int, options: DecodeOptions, steps: int = 24) -> Loop:
    return Loop(
        LoopShape(
            VOCABULARY,
            images,
            images * options.rows_per_image,
            steps,
            recurrent=(RowTensor("h", (8,)),),
            memory=(RowTensor("image", (8,)),),
            noise=(RowTensor("u", (2,)),),
            records=(RowTensor("hidden", (8,)), RowTensor("noise_seen", (2,))),
        )
    )


def initial(images: int) -> dict[str, Any]:
    draw = np.random.default_rng(images)
    return {
        "h": draw.standard_normal((images, 8)).astype(np.float32),
        "image": draw.standard_normal((images, 8)).astype(np.float32),
    }


def run(options: DecodeOptions, images: int = 3, prompts: Any = None, **kwargs: Any) -> list[list[Hypothesis]]:
    task = Task(prompts or [[0]] * images, (END,), initial(images))
    return decode(make_loop(images, options), kwargs.pop("step", recurrent_step), task, options, **kwargs)


def tokens_of(found: list[list[Hypothesis]]) -> list[list[tuple[int, ...]]]:
    return [[h.tokens for h in image] for image in found]


BEAMS = DecodeOptions(num_beams=4, num_return_sequences=3, max_new_tokens=20)
GREEDY = DecodeOptions(max_new_tokens=20)
SAMPLES = DecodeOptions(do_sample=True, num_return_sequences=3, max_new_tokens=20, seed=3)
CLASSIC = DecodeOptions(rule="classic", num_beams=4, num_return_sequences=2, max_new_tokens=20, length_penalty=0.0)
EVERY = pytest.mark.parametrize("options", [GREEDY, BEAMS, CLASSIC, SAMPLES], ids=["greedy", "hf", "classic", "sample"])


@pytest.mark.parametrize("options", [GREEDY, BEAMS, CLASSIC], ids=["greedy", "hf", "classic"])
def test_images_together_or_alone(options: DecodeOptions) -> None:
    """Batches, fan-out and the departure of finished images change nothing but the speed."""
    given = initial(5)
    together = run(options, 5)
    for image in range(5):
        alone = Task([[0]], (END,), {name: array[image : image + 1] for name, array in given.items()})
        found = decode(make_loop(1, options), recurrent_step, alone, options)[0]
        assert [h.tokens for h in found] == [h.tokens for h in together[image]]
        assert [h.score for h in found] == pytest.approx([h.score for h in together[image]], abs=1e-5)


@pytest.mark.parametrize("options", [GREEDY, BEAMS], ids=["greedy", "hf"])
def test_prompts_of_any_length_read_token_by_token(options: DecodeOptions) -> None:
    prompts = [[0], [3, 4, 5, 6], [7, 8], [9, 10, 11]]
    together = run(options, 4, prompts)
    given = initial(4)
    for image, prompt in enumerate(prompts):
        h = given["h"][image]
        for token in prompt[:-1]:
            h = np.tanh(h @ RECUR + EMBEDDING[token] + given["image"][image])
        start = {"h": h[None], "image": given["image"][image : image + 1]}
        task = Task([prompt[-1:]], (END,), start)
        assert tokens_of(together)[image] == tokens_of(decode(make_loop(1, options), recurrent_step, task, options))[0]


@EVERY
def test_records_belong_to_their_words(options: DecodeOptions) -> None:
    """The recorded state is the one that the network has after reading the words before."""
    given = initial(3)
    for image, found in enumerate(run(options)):
        for hypothesis in found:
            h, last = given["h"][image], 0
            assert hypothesis.records["hidden"].shape == (len(hypothesis.tokens), 8)
            for token, recorded in zip(hypothesis.tokens, hypothesis.records["hidden"]):
                h = np.tanh(h @ RECUR + EMBEDDING[last] + given["image"][image])
                assert recorded == pytest.approx(h, abs=1e-5)
                last = token


@EVERY
def test_streamed_tokens_are_those_of_the_first_hypothesis(options: DecodeOptions) -> None:
    if options.do_sample:
        options = DecodeOptions(do_sample=True, max_new_tokens=20, seed=3)
    streamed: dict[int, list[int]] = defaultdict(list)
    found = run(options, on_token=lambda image, token: streamed[image].append(token))
    assert [tuple(streamed[i]) for i in range(3)] == [image[0].tokens for image in found]


def test_beams_stream_before_they_are_done() -> None:
    early = 0
    for images in range(1, 8):
        steps, seen = [0], []

        def step(b: StepBuffers, steps: list[int] = steps) -> None:
            steps[0] += 1
            recurrent_step(b)

        def on_token(image: int, token: int, seen: list[int] = seen, steps: list[int] = steps) -> None:
            seen.append(steps[0])

        run(BEAMS, images, step=step, on_token=on_token)
        early += sum(at < steps[0] for at in seen)
    assert early > 0


def test_one_beam_streams_each_token_as_it_is_chosen() -> None:
    steps, seen = [0], []

    def step(b: StepBuffers) -> None:
        steps[0] += 1
        recurrent_step(b)

    found = run(GREEDY, 1, step=step, on_token=lambda image, token: seen.append(steps[0]))
    assert seen == list(range(1, len(found[0][0].tokens) + 1))


@EVERY
def test_cancelling_returns_what_is_there(options: DecodeOptions) -> None:
    calls = iter(range(100))
    whole, partial = run(options), run(options, should_cancel=lambda: next(calls) >= 3)
    for complete, cut in zip(whole, partial):
        assert cut
        for hypothesis in cut:
            assert len(hypothesis.tokens) <= 3
            assert hypothesis.finished == (hypothesis.tokens[-1] == END)
        if options == GREEDY:
            assert cut[0].tokens == complete[0].tokens[:3]


def test_cancelling_at_once_runs_nothing() -> None:
    def step(b: StepBuffers) -> None:
        pytest.fail("the model was called")

    for options in (GREEDY, BEAMS, CLASSIC):
        for (nothing,) in run(options, step=step, should_cancel=lambda: True):
            assert (nothing.tokens, nothing.score, nothing.finished) == ((), 0.0, False)
            assert nothing.records["hidden"].shape == (0, 8)


@pytest.mark.parametrize("where", ["step", "on_token", "should_cancel"])
def test_an_exception_passes_and_leaves_the_loop_usable(where: str) -> None:
    loop, task = make_loop(3, BEAMS), Task([[0]] * 3, (END,), initial(3))
    expected = tokens_of(decode(loop, recurrent_step, task, BEAMS))
    calls = iter(range(100))

    def fail(*args: object) -> bool:
        if next(calls) == 4:
            raise KeyError("mine")
        if where == "step":
            recurrent_step(*args)  # type: ignore[arg-type]
        return False

    given: dict[str, Any] = {"step": recurrent_step, where: fail}
    with pytest.raises(KeyError, match="mine"):
        decode(loop, given.pop("step"), task, BEAMS, **given)
    assert tokens_of(decode(loop, recurrent_step, task, BEAMS)) == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@EVERY
def test_scores_that_are_not_finite_are_an_error(options: DecodeOptions, bad: float) -> None:
    def step(b: StepBuffers) -> None:
        recurrent_step(b)
        b.logits[b.rows - 1, 5] = bad

    with pytest.raises(VlrtError, match=r"image 2, new token 0: logits are not finite"):
        run(options, step=step)


@EVERY
def test_no_possible_token_is_an_error(options: DecodeOptions) -> None:
    everything = replace(options, suppress_tokens=tuple(range(VOCABULARY)), renormalize_logits=True)
    with pytest.raises(VlrtError, match="no token has a finite score\nhint: the options forbid every token"):
        run(everything)


def test_noise_is_uniform_fresh_and_seeded() -> None:
    def noise(seed: int) -> Any:
        options = DecodeOptions(num_beams=2, max_new_tokens=12, seed=seed, min_new_tokens=12)
        return run(options, 1)[0][0].records["noise_seen"]

    first = noise(5)
    assert np.array_equal(first, noise(5))
    assert not np.array_equal(first, noise(6))
    assert len(np.unique(first)) == first.size
    assert ((first >= 0) & (first < 1)).all()


def test_same_seed_same_samples() -> None:
    assert tokens_of(run(SAMPLES)) == tokens_of(run(SAMPLES))
    other = DecodeOptions(do_sample=True, num_return_sequences=3, max_new_tokens=20, seed=4)
    assert tokens_of(run(SAMPLES)) != tokens_of(run(other))


def test_a_finished_image_changes_no_other_s_samples() -> None:
    """Draws are made for finished rows too (transformers does): what image 0 samples is its own affair."""
    options = DecodeOptions(do_sample=True, max_new_tokens=12, seed=8)

    def step(b: StepBuffers, ending: bool) -> None:
        recurrent_step(b)
        if ending and b.images == 3:
            b.logits[0, END] = 1e4

    whole = tokens_of(run(options, step=lambda b: step(b, False)))
    ended = tokens_of(run(options, step=lambda b: step(b, True)))
    assert ended[0] == [(END,)]
    assert whole[0] != ended[0]
    assert whole[1:] == ended[1:]


def test_buffers_are_views_that_outlive_the_loop() -> None:
    loop = make_loop(2, BEAMS)
    buffers = loop.buffers(4, 1, 2)
    assert loop.buffers(4, 1, 2) is buffers
    assert np.shares_memory(buffers.logits, loop.buffers(8, 1, 2).logits)
    assert all(a.ctypes.data % 64 == 0 for a in (buffers.logits, buffers.states["h"], buffers.memory["image"]))
    del loop
    gc.collect()
    buffers.logits[:] = 1
    assert buffers.logits.sum() == 4 * VOCABULARY


def test_one_loop_serves_smaller_tasks() -> None:
    loop = make_loop(4, BEAMS)
    for images in (4, 1, 2):
        task = Task([[0]] * images, (END,), initial(images))
        assert tokens_of(decode(loop, recurrent_step, task, BEAMS)) == tokens_of(run(BEAMS, images))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (Task([], (END,), initial(0)), BEAMS, "number of prompts"),
        (Task([[0]] * 5, (END,), initial(5)), BEAMS, "number of prompts"),
        (Task([[]], (END,), initial(1)), BEAMS, "prompt is empty"),
        (Task([[VOCABULARY]], (END,), initial(1)), BEAMS, "outside the vocabulary"),
        (Task([[0]], (VOCABULARY,), initial(1)), BEAMS, "outside the vocabulary"),
        (Task([[0]], (END,), initial(1)), DecodeOptions(max_new_tokens=25), "do not fit"),
        (Task([[0]] * 2, (END,), initial(2)), DecodeOptions(num_beams=9, max_new_tokens=5), "do not fit"),
        (Task([[0]], (END,), {"h": initial(1)["h"]}), BEAMS, "`image` is missing"),
        (Task([[0]], (END,), initial(2)), BEAMS, r"float32 \[2, 8\], expected float32 \[1, 8\]"),
        (Task([[0]], (END,), {k: v.astype(float) for k, v in initial(1).items()}), BEAMS, "is float64"),
    ],
)
def test_what_does_not_fit_is_refused(task: Task, options: DecodeOptions, message: str) -> None:
    with pytest.raises((ValueError, VlrtError), match=message):
        decode(make_loop(4, BEAMS), recurrent_step, task, options)


def test_a_loop_runs_once_at_a_time() -> None:
    loop, task = make_loop(3, GREEDY), Task([[0]] * 3, (END,), initial(3))

    def nested(b: StepBuffers) -> None:
        decode(loop, recurrent_step, task, GREEDY)

    with pytest.raises(RuntimeError, match="running already"):
        decode(loop, nested, task, GREEDY)
    assert decode(loop, recurrent_step, task, GREEDY)


def test_threads_decode_at_the_same_time() -> None:
    """Every step waits until both threads are inside theirs: one after the other would time out."""
    barrier, options = threading.Barrier(2, timeout=20), DecodeOptions(num_beams=3, max_new_tokens=6, min_new_tokens=6)
    expected, found = tokens_of(run(options)), {}

    def step(b: StepBuffers) -> None:
        barrier.wait()
        recurrent_step(b)

    def work(name: int) -> None:
        found[name] = tokens_of(run(options, step=step))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: expected, 1: expected}


def test_the_interpreter_is_free_while_the_loop_works() -> None:
    """With a switch interval of minutes, this thread runs between two steps only if C++ lets go of the lock."""
    steps, seen, interval = [0], set(), sys.getswitchinterval()
    options = DecodeOptions(max_new_tokens=20, min_new_tokens=20)
    wide = Loop(LoopShape(2_000_000, 1, 1, 20))

    def flat(b: StepBuffers) -> None:
        steps[0] += 1
        b.logits[:] = 0

    worker = threading.Thread(target=lambda: decode(wide, flat, Task([[0]], ()), options))
    sys.setswitchinterval(600)
    try:
        worker.start()
        while worker.is_alive():
            seen.add(steps[0])
            threading.Event().wait(1e-4)
    finally:
        sys.setswitchinterval(interval)
    worker.join()
    assert len(seen - {0, 20}) >= 3
