"""Compact caches: a loop that keeps only what sparse attention sees must choose what full caches with masks would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vlrt.attention_patterns import PatternSpec
from vlrt.decode import DecodeOptions, Hypothesis, Loop, LoopShape, RowTensor, StepBuffers, Task, decode
from vlrt.errors import BundleError, VlrtError

VOCABULARY, WIDTH, HEADS, TEXT = 11, 8, 2, 3
GRID = (4, 5)
CELLS = GRID[0] * GRID[1]

PATTERNS = {
    "row": PatternSpec("row", "row", TEXT, GRID),
    "column": PatternSpec("column", "column", TEXT, GRID),
    "recent": PatternSpec("recent", "recent", TEXT, GRID),
    "above_left": PatternSpec("above_left", "above_left", TEXT, GRID, kernel=3),
    "dilated": PatternSpec("dilated", "above_left", TEXT, GRID, kernel=3, dilation=2),
    "around": PatternSpec("around", "around", TEXT, GRID, kernel=3),
    "around_wrapped": PatternSpec("around_wrapped", "around_wrapped", TEXT, GRID, kernel=3),
}
EVERY = pytest.mark.parametrize("name", PATTERNS)

GREEDY = DecodeOptions(max_new_tokens=CELLS)
SAMPLES = replace(GREEDY, do_sample=True, num_return_sequences=4, top_k=6, seed=9)
GUIDED = replace(SAMPLES, guidance_scale=2.5)
BEAMS = replace(GREEDY, num_beams=4, num_return_sequences=4)
SEARCHES = pytest.mark.parametrize(
    "options", [GREEDY, SAMPLES, GUIDED, BEAMS], ids=["greedy", "samples", "guided", "beams"]
)


def sees(kind: str, q: int, k: int) -> bool:
    """Whether cell q sees the earlier cell k: each kind said once more, by coordinates."""
    (r, c), (i, j) = divmod(q, GRID[1]), divmod(k, GRID[1])
    return {
        "row": r == i,
        "column": c == j,
        "recent": q - k <= GRID[1],
        "above_left": 0 <= r - i <= 2 and 0 <= c - j <= 2,
        "dilated": r - i in (0, 2, 4) and c - j in (0, 2, 4),
        "around": abs(r - i) <= 1 and abs(c - j) <= 1,
        "around_wrapped": abs(r - i) in (0, 1, GRID[0] - 1) and abs(c - j) in (0, 1, GRID[1] - 1),
    }[kind]


def mask(kind: str) -> NDArray[np.bool_]:
    """What each position sees: text and, among cells, what the kind says."""
    length = TEXT + CELLS
    seen = np.tril(np.ones((length, length), bool))
    for q in range(CELLS):
        for k in range(q):
            seen[TEXT + q, TEXT + k] = sees(kind, q, k)
    return seen


@EVERY
def test_patterns_see_what_their_kind_says(name: str) -> None:
    full = mask(name)[TEXT:, TEXT:]
    assert PATTERNS[name].visible() == tuple(tuple(int(k) for k in np.flatnonzero(full[q][:q])) for q in range(CELLS))


class Model:
    """A layer of attention for each pattern, over embeddings of token and place; NumPy both ways."""

    def __init__(self, names: tuple[str, ...]) -> None:
        draw = np.random.default_rng(3)
        self.names = names
        self.tokens = draw.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
        self.places = draw.standard_normal((TEXT + CELLS, WIDTH)).astype(np.float32)
        self.layers = {name: draw.standard_normal((3, WIDTH, WIDTH)).astype(np.float32) / 2 for name in names}
        self.output = draw.standard_normal((WIDTH, VOCABULARY)).astype(np.float32)

    def loop(self, images: int, options: DecodeOptions, width: int = TEXT) -> Loop:
        patterns = tuple(PATTERNS[name] for name in self.names)
        caches = [
            RowTensor(f"{kind}.{p.name}", (HEADS, p.positions, WIDTH // HEADS), pattern=p.name)
            for p in patterns
            for kind in ("key", "value")
        ]
        rows = images * options.rows_per_image
        return Loop(LoopShape(VOCABULARY, images * options.lanes, rows, CELLS, width, tuple(caches), patterns=patterns))

    def step(self, b: StepBuffers) -> None:
        x = self.tokens[b.tokens] + self.places[b.positions]
        for name in self.names:
            q, k, v = (self.split(x @ w) for w in self.layers[name])
            keys, values = b.caches[f"key.{name}"], b.caches[f"value.{name}"]
            last, mixed = b.pattern_last[name], np.zeros_like(q)
            assert b.pattern_total[name][0] == last.max() + 1
            for row in range(b.rows):
                first = last[row] + 1 - b.width
                keys[row, :, first : last[row] + 1] = k[row]
                values[row, :, first : last[row] + 1] = v[row]
                for place in range(b.width):
                    filled = first + place + 1
                    mixed[row, :, place] = self.attend(q[row, :, place], keys[row, :, :filled], values[row, :, :filled])
            x = x + self.join(mixed)
        b.logits[:] = x[:, -1] @ self.output

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """The next token's, by full attention with masks over the whole sequence."""
        length = len(tokens)
        x = self.tokens[tokens] + self.places[:length]
        for name in self.names:
            q, k, v = (self.split((x @ w)[None])[0] for w in self.layers[name])
            seen, mixed = mask(name), np.zeros_like(q)
            for place in range(length):
                keep = seen[place, :length]
                mixed[:, place] = self.attend(q[:, place], k[:, keep], v[:, keep])
            x = x + self.join(mixed[None])[0]
        return np.asarray(x[-1] @ self.output)

    @staticmethod
    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = np.einsum("hd,hnd->hn", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("hn,hnd->hd", weights / weights.sum(-1, keepdims=True), v)

    @staticmethod
    def split(x: Any) -> Any:
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

    @staticmethod
    def join(x: Any) -> Any:
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def full_step(model: Model, history: dict[int, list[list[int]]]) -> Any:
    """The same model for the same loop without any cache: each row carries its tokens in a recurrent state."""

    def step(b: StepBuffers) -> None:
        b.next_states["said"][:] = b.states["said"]
        for row in range(b.rows):
            place = int(b.positions[row, 0])
            b.next_states["said"][row, place] = b.tokens[row, 0]
            said = [int(t) for t in b.next_states["said"][row, : place + 1]]
            history.setdefault(len(said), []).append(said)
            b.logits[row] = model.logits(said) if place + 1 >= TEXT else 0

    return step


def expected(model: Model, task: Task, options: DecodeOptions) -> list[list[Hypothesis]]:
    images, rows = len(task.prompts), len(task.prompts) * options.rows_per_image
    state = RowTensor("said", (TEXT + CELLS,), "int64")
    loop = Loop(LoopShape(VOCABULARY, images * options.lanes, rows, CELLS, recurrent=(state,)))
    empty = {"said": np.zeros((images, TEXT + CELLS), np.int64)}
    full = replace(task, initial=empty, unconditional=empty)
    return decode(loop, full_step(model, {}), full, options)


def same(found: list[list[Hypothesis]], wanted: list[list[Hypothesis]]) -> bool:
    assert [[h.tokens for h in image] for image in found] == [[h.tokens for h in image] for image in wanted]
    for ours, theirs in zip(found, wanted):
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-3)
    return True


@SEARCHES
@EVERY
def test_every_pattern_chooses_what_masks_would(name: str, options: DecodeOptions) -> None:
    """Whole pictures: candidates fan out from one text, beams fork and take their waiting cells along."""
    model = Model((name,))
    task = Task([[1, 2, 3]], (), unconditional_prompts=[[4, 4, 4]])
    found = decode(model.loop(1, options), model.step, task, options)
    assert same(found, expected(model, task, options))
    assert all(len(h.tokens) == CELLS for h in found[0])


@SEARCHES
def test_patterns_together_and_several_prompts(options: DecodeOptions) -> None:
    model = Model(("row", "column", "around"))
    task = Task([[1, 2, 3], [5, 6, 7]], (), unconditional_prompts=[[4, 4, 4], [4, 4, 4]])
    assert same(decode(model.loop(2, options), model.step, task, options), expected(model, task, options))


@pytest.mark.parametrize("options", [SAMPLES, GUIDED, BEAMS], ids=["samples", "guided", "beams"])
@pytest.mark.parametrize("given", [1, 5, 12])
@pytest.mark.parametrize("width", [TEXT, TEXT + 1])
def test_a_picture_that_is_begun(given: int, width: int, options: DecodeOptions) -> None:
    """The first rows are given: they are read cell by cell in one row, then candidates fan out with waiting cells."""
    model = Model(("recent", "column", "above_left"))
    cells = [(7 * i + 3) % VOCABULARY for i in range(given)]
    options = replace(options, max_new_tokens=CELLS - given)
    task = Task([[1, 2, 3, *cells]], (), unconditional_prompts=[[4, 4, 4, *cells]])
    widths: set[tuple[int, int]] = set()

    def step(b: StepBuffers) -> None:
        widths.add((b.rows, b.width))
        model.step(b)

    found = decode(model.loop(1, options, width), step, task, options)
    assert same(found, expected(model, task, options))
    assert (options.lanes, width) in widths


def test_cancelling_while_a_given_picture_is_read() -> None:
    model, calls = Model(("row",)), iter(range(100))
    task = Task([[1, 2, 3, *[5] * 8]], ())
    options = replace(SAMPLES, max_new_tokens=4)
    (found,) = decode(model.loop(1, options), model.step, task, options, should_cancel=lambda: next(calls) >= 4)
    assert [h.tokens for h in found] == [()] * 4


@pytest.mark.parametrize(("name", "positions"), [("row", 5), ("recent", 6), ("column", 4), ("above_left", 9)])
def test_a_compact_cache_holds_no_more_than_is_seen(name: str, positions: int) -> None:
    assert PATTERNS[name].positions == TEXT + positions


@pytest.mark.parametrize(
    ("prompts", "steps", "message"),
    [
        ([[1, 2, 3], [1, 2]], CELLS, "prompts differ in length"),
        ([[1, 2, 3, 4]], CELLS + 1, "do not fit"),
        ([[1, 2, 3, *[4] * 5]], CELLS, "do not fit the grid"),
    ],
)
def test_what_does_not_fit_is_refused(prompts: list[list[int]], steps: int, message: str) -> None:
    options = replace(GREEDY, max_new_tokens=steps)
    with pytest.raises(ValueError, match=message):
        decode(Model(("row",)).loop(2, GREEDY), lambda b: None, Task(prompts, ()), options)


def test_a_first_call_must_end_where_patterns_begin() -> None:
    model = Model(("row",))
    with pytest.raises(ValueError, match="reaches into the grid"):
        decode(
            model.loop(1, GREEDY, TEXT + 2), model.step, Task([[1, 2, 3, 4, 5]], ()), replace(GREEDY, max_new_tokens=2)
        )


def test_a_cache_must_hold_its_pattern() -> None:
    short = RowTensor("key", (1, 4, 2), pattern="row")
    with pytest.raises(ValueError, match="`key` is shorter than its pattern"):
        Loop(LoopShape(VOCABULARY, 1, 1, 1, caches=(short,), patterns=(PATTERNS["row"],)))
    with pytest.raises(VlrtError, match="names the pattern `row`"):
        LoopShape(VOCABULARY, 1, 1, 1, caches=(short,))


@pytest.mark.parametrize(
    "change", [{"kernel": 2}, {"grid": (0, 5)}, {"text": 0}, {"name": ""}, {"dilation": 0}, {"grid": (256, 256)}]
)
def test_patterns_that_cannot_be_meant(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="which cannot be meant"):
        replace(PatternSpec("p", "around", TEXT, GRID, 255 if "grid" in change else 3), **change)
