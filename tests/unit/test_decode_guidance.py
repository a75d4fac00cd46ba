"""Guidance on logits: two rows per hypothesis must choose what one row of both states would, by the formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vlrt.decode import (
    DecodeOptions,
    Hypothesis,
    Loop,
    LoopShape,
    RowTensor,
    StepBuffers,
    StepModel,
    Task,
    decode,
    generate,
)
from vlrt.errors import UsageError, VlrtError
from vlrt.manifest import DecodeSpec, GraphSpec, StateSpec, TensorSpec

VOCABULARY, END, WIDTH = 30, 1, 6
rng = np.random.default_rng(5)
EMBEDDING = rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
RECUR = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32)
OUTPUT = (rng.standard_normal((WIDTH, VOCABULARY)) * 2).astype(np.float32)
STATE, MEMORY = RowTensor("h", (WIDTH,)), RowTensor("image", (WIDTH,))

GREEDY = DecodeOptions(max_new_tokens=14, guidance_scale=3.0)
BEAMS = replace(GREEDY, num_beams=4, num_return_sequences=3)
CLASSIC = replace(BEAMS, rule="classic", length_penalty=0.0)
SAMPLES = replace(GREEDY, do_sample=True, num_return_sequences=5, seed=2, top_k=8)
EVERY = pytest.mark.parametrize("options", [GREEDY, BEAMS, CLASSIC, SAMPLES], ids=["greedy", "hf", "classic", "sample"])


def next_state(h: Any, token: Any, image: Any) -> Any:
    return np.tanh(h @ RECUR + EMBEDDING[token] + image)


def step(b: StepBuffers) -> None:
    """One lane a row; it knows nothing of guidance."""
    hidden = next_state(b.states["h"], b.tokens[:, 0], np.repeat(b.memory["image"], b.rows // b.images, 0))
    b.next_states["h"][:] = hidden
    b.logits[:] = hidden @ OUTPUT


def both_lanes(scale: float) -> Any:
    """The guided model as an unguided one: a row holds both states, and the formula is part of the model."""

    def twin(b: StepBuffers) -> None:
        memory = np.repeat(b.memory["image"], b.rows // b.images, 0)
        c, u = (
            next_state(b.states["h"][:, part], b.tokens[:, 0], memory[:, part])
            for part in (slice(0, WIDTH), slice(WIDTH, None))
        )
        b.next_states["h"][:] = np.concatenate([c, u], 1)
        b.logits[:] = u @ OUTPUT + np.float32(scale) * (c @ OUTPUT - u @ OUTPUT)

    return twin


def values(images: int, seed: int) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {name: draw.standard_normal((images, WIDTH)).astype(np.float32) for name in ("h", "image")}


def loop(images: int, options: DecodeOptions, lanes: int) -> Loop:
    rows = images * options.rows_per_image * lanes // options.lanes
    wide = WIDTH * (1 if lanes == 2 else 2)
    return Loop(
        LoopShape(
            VOCABULARY,
            images * lanes,
            rows,
            options.max_new_tokens,
            recurrent=(replace(STATE, shape=(wide,)),),
            memory=(replace(MEMORY, shape=(wide,)),),
        )
    )


def guided(options: DecodeOptions, images: int = 3, prompts: Any = None, **more: Any) -> list[list[Hypothesis]]:
    task = Task(prompts or [[0]] * images, (END,), values(images, 1), unconditional=values(images, 2), **more)
    return decode(loop(images, options, 2), step, task, options)


def expected(options: DecodeOptions, images: int = 3, prompts: Any = None) -> list[list[Hypothesis]]:
    conditional, unconditional = values(images, 1), values(images, 2)
    joined = {name: np.concatenate([conditional[name], unconditional[name]], 1) for name in conditional}
    task = Task(prompts or [[0]] * images, (END,), joined)
    plain = replace(options, guidance_scale=1.0)
    return decode(loop(images, options, 1), both_lanes(options.guidance_scale), task, plain)


def same(found: list[list[Hypothesis]], wanted: list[list[Hypothesis]]) -> bool:
    assert [[h.tokens for h in image] for image in found] == [[h.tokens for h in image] for image in wanted]
    for ours, theirs in zip(found, wanted):
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)
    return True


@EVERY
@pytest.mark.parametrize("images", [1, 2, 5])
def test_two_rows_choose_what_the_formula_says(options: DecodeOptions, images: int) -> None:
    """Over fan-out, forking beams and images that finish before others."""
    found = guided(options, images)
    assert same(found, expected(options, images))
    if images == 5:
        assert len({len(h.tokens) for image in found for h in image}) > 1, "nothing finished early"


@EVERY
def test_prompts_of_different_lengths(options: DecodeOptions) -> None:
    prompts = [[0, 4], [3, 4, 5, 6], [7]]
    assert same(guided(options, 3, prompts), expected(options, 3, prompts))


def test_unconditional_prompts_are_read_in_their_own_rows() -> None:
    """The prompt differs between the lanes; then both get the tokens chosen."""
    conditional, unconditional = values(1, 1), values(1, 2)
    found = guided(GREEDY, 1, [[3, 4, 5]], unconditional_prompts=[[6, 6, 7]])[0][0].tokens
    c, u = ((v["h"][0], v["image"][0]) for v in (conditional, unconditional))
    states = [c[0], u[0]]
    for pair in ((3, 6), (4, 6), (5, 7)):
        states = [next_state(h, token, v[1]) for h, token, v in zip(states, pair, (c, u))]
    for token in found:
        logits = [h @ OUTPUT for h in states]
        assert token == int(np.argmax(logits[1] + 3.0 * (logits[0] - logits[1])))
        states = [next_state(h, token, v[1]) for h, v in zip(states, (c, u))]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_scale_that_guides_nothing_costs_no_rows(scale: float) -> None:
    seen: set[int] = set()

    def watched(b: StepBuffers) -> None:
        seen.add(b.rows)
        step(b)

    options = replace(GREEDY, guidance_scale=scale)
    task = Task([[0]] * 2, (END,), values(2, 1), unconditional=values(2, 2))
    plain = Task([[0]] * 2, (END,), values(2, 1))
    found = decode(loop(2, options, 2), watched, task, options)
    assert max(seen) == 2
    assert same(found, decode(loop(2, options, 2), step, plain, options))


def test_what_a_graph_forbids_stays_forbidden() -> None:
    """Minus infinity in either lane is no reason for something that is not a number."""

    def forbidding(b: StepBuffers) -> None:
        step(b)
        b.logits[:, 4:] = -np.inf
        b.logits[1::2, 3] = -np.inf

    options = replace(GREEDY, max_new_tokens=8, min_new_tokens=8)
    task = Task([[0]], (END,), values(1, 1), unconditional=values(1, 2))
    (found,) = decode(loop(1, options, 2), forbidding, task, options)
    assert set(found[0].tokens) <= {0, 2, 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unconditional": {}}, "unconditional value of `h` is missing"),
        ({"unconditional": values(2, 2)}, r"is \[2, 6\], expected \[1, 6\]"),
        ({"unconditional_prompts": [[0, 0]]}, "differ from the prompts"),
    ],
)
def test_lanes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    task = replace(Task([[0]], (END,), values(1, 1), unconditional=values(1, 2)), **change)
    with pytest.raises(VlrtError, match=message):
        decode(loop(1, GREEDY, 2), step, task, GREEDY)


class Refusing:
    """A session that must not be called."""

    def __init__(self, *inputs: str) -> None:
        given = (TensorSpec("token", "int64", ("rows",)), *(TensorSpec(n, "float32", ("rows", WIDTH)) for n in inputs))
        self.spec = GraphSpec("step.onnx", "fp32", given, (TensorSpec("logits", "float32", ("rows", VOCABULARY)),))

    def run(self, **arrays: Any) -> dict[str, Any]:
        pytest.fail("the model was called")

    def bind(self, inputs: Any, outputs: Any) -> Any:
        pytest.fail("the model was bound")


@pytest.mark.parametrize(
    ("state", "initial", "message"),
    [
        (StateSpec("kv_concat", "past", "present"), {}, "exported by others and is not guided"),
        (StateSpec("memory", "image"), {"image": values(1, 1)["image"]}, "what the model makes of an empty prompt"),
    ],
)
def test_models_that_cannot_be_guided(state: StateSpec, initial: dict[str, Any], message: str) -> None:
    spec = DecodeSpec(("chain",), "step", VOCABULARY, (0,), (END,), 0, (state,), max_length=20)
    with pytest.raises(UsageError, match=message):
        generate(StepModel(spec, Refusing(state.input)), initial, GREEDY, prompts=[[0]])


def test_a_scale_must_be_a_number() -> None:
    with pytest.raises(UsageError, match="`guidance_scale` is nan"):
        DecodeOptions(guidance_scale=float("nan"))
