"""Shifted tokens: what the loop hands to a cell from above and from the left is what the whole grid would give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vlrt.attention_patterns import PatternSpec
from vlrt.decode import DecodeOptions, Loop, LoopShape, RowTensor, StepBuffers, Task, decode
from vlrt.errors import VlrtError

VOCABULARY, WIDTH, TEXT, ROWS, COLUMNS = 9, 8, 3, 4, 5
CELLS, HALF = ROWS * COLUMNS, WIDTH // 2
GRID = PatternSpec("grid", "row", TEXT, (ROWS, COLUMNS))
draw = np.random.default_rng(4)
EMBEDDING = draw.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
PLACES = draw.standard_normal((TEXT + CELLS, WIDTH)).astype(np.float32)
LAYERS = draw.standard_normal((2, WIDTH, WIDTH)).astype(np.float32)
OUTPUT = (draw.standard_normal((WIDTH, VOCABULARY)) * 2).astype(np.float32)

GREEDY = DecodeOptions(max_new_tokens=CELLS)
SAMPLES = replace(GREEDY, do_sample=True, num_return_sequences=3, top_k=6, seed=1)
GUIDED = replace(SAMPLES, guidance_scale=3.0)
BEAMS = replace(GREEDY, num_beams=4, num_return_sequences=4)


def step(b: StepBuffers) -> None:
    """Text is read in one call and passes on nothing; a cell's layers read their neighbours' halves."""
    x = (EMBEDDING[b.tokens] + PLACES[b.positions])[:, -1]
    for number, matrix in enumerate(LAYERS):
        b.next_states[f"shift.{number}"][:] = x[:, :HALF]
        x = np.tanh(np.concatenate([b.states[f"shift.{number}"], x[:, HALF:]], 1) @ matrix)
    b.logits[:] = x @ OUTPUT


def whole(tokens: list[int]) -> NDArray[np.float32]:
    """Logits after the last token, from the whole grid."""
    x = EMBEDDING[tokens] + PLACES[: len(tokens)]
    for matrix in LAYERS:
        moved = np.zeros((len(tokens), HALF), np.float32)
        for place in range(TEXT, len(tokens)):
            row, column = divmod(place - TEXT, COLUMNS)
            if row > 0:
                moved[place, : HALF // 2] = x[place - COLUMNS, : HALF // 2]
            if column > 0:
                moved[place, HALF // 2 :] = x[place - 1, HALF // 2 : HALF]
        x = np.tanh(np.concatenate([moved, x[:, HALF:]], 1) @ matrix)
    return np.asarray(x[-1] @ OUTPUT)


def full_step(b: StepBuffers) -> None:
    b.next_states["said"][:] = b.states["said"]
    for row in range(b.rows):
        place = int(b.positions[row, 0])
        b.next_states["said"][row, place] = b.tokens[row, 0]
        b.logits[row] = whole([int(t) for t in b.next_states["said"][row, : place + 1]])


def shape(options: DecodeOptions, images: int, **more: Any) -> LoopShape:
    return LoopShape(VOCABULARY, images * options.lanes, images * options.rows_per_image, CELLS, **more)


@pytest.mark.parametrize("given", [0, 1, 7])
@pytest.mark.parametrize("options", [GREEDY, SAMPLES, GUIDED, BEAMS], ids=["greedy", "samples", "guided", "beams"])
def test_cells_read_their_neighbours(options: DecodeOptions, given: int) -> None:
    """Also where a picture is begun, and where rows fork: then their neighbours come along."""
    options = replace(options, max_new_tokens=CELLS - given)
    cells = [(5 * i + 2) % VOCABULARY for i in range(given)]
    task = Task([[1, 2, 3, *cells], [4, 5, 6, *cells]], (), unconditional_prompts=[[7, 7, 7, *cells]] * 2)
    shifts = tuple(RowTensor(f"shift.{n}", (HALF,), pattern="grid") for n in range(2))
    loop = Loop(shape(options, 2, max_width=TEXT, patterns=(GRID,), shifts=shifts))
    found = decode(loop, step, task, options)
    assert decode(loop, step, task, options) == found, "a second run begins with zeros again"
    empty = {"said": np.zeros((2, TEXT + CELLS), np.int64)}
    plain = Loop(shape(options, 2, recurrent=(RowTensor("said", (TEXT + CELLS,), "int64"),)))
    wanted = decode(plain, full_step, replace(task, initial=empty, unconditional=empty), options)
    assert [[h.tokens for h in image] for image in found] == [[h.tokens for h in image] for image in wanted]


def test_a_shift_needs_a_grid_and_two_halves() -> None:
    with pytest.raises(VlrtError, match="names the pattern ``"):
        shape(GREEDY, 1, shifts=(RowTensor("shift", (4,)),))
    odd = RowTensor("shift", (3,), "int8", pattern="grid")
    with pytest.raises(ValueError, match="two halves"):
        Loop(shape(GREEDY, 1, patterns=(GRID,), shifts=(odd,)))
