"""The graphs of a DALL-E: texts to the states they begin with, and the step over compact caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vlrt.attention_patterns import PatternSpec
from vlrt.manifest import StateSpec
from vlrt_export.graph import Graph
from vlrt_export.modules.attention_kv import KeysValues, Places
from vlrt_export.modules.dalle import FULL, Dalle, DalleSizes, DalleState, DalleText

TEXT, STEP = "text_embedding", "decoder_step"
IDS, PREFIX = "input_ids", "text_prefix"
_GRID = "grid"

_Call = tuple[int, int, int | None]
_CALLS: Sequence[_Call] = ((2, 3, 7), (1, 1, None), (3, 1, None), (1, 4, 0), (2, 1, 1))
"""Images, rows per image, and the cell of the call; `None` for the call that reads the text."""


class _Step(nn.Module):
    """One call of the transformer with its states as a flat list."""

    def __init__(self, dalle: Dalle) -> None:
        super().__init__()
        self.dalle = dalle

    def forward(
        self,
        token: Tensor,
        position: Tensor,
        new_length: Tensor,
        last_position: Tensor,
        total_length: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        sizes, rest = self.dalle.sizes, list(given)
        places = {FULL: Places(last_position, total_length)}
        for pattern in sizes.patterns:
            places[pattern.name] = Places(rest.pop(0), rest.pop(0))
        embedded = self.dalle.embed(rest.pop(0), token, position)
        caches, earlier = rest[: 2 * sizes.layers], rest[2 * sizes.layers :]
        past = [KeysValues(keys, values) for keys, values in zip(caches[::2], caches[1::2])]
        logits, present, read = self.dalle(embedded, position, new_length, DalleState(past, places, earlier))
        return logits, *(tensor for pair in present for tensor in (pair.keys, pair.values)), *read


def text_graph(text: DalleText, tolerance: float) -> Graph:
    """Ids of padded texts [N, L] to their first states [N, T, C]."""
    sizes, generator = text.sizes, torch.Generator().manual_seed(0)
    cases = [{IDS: torch.randint(sizes.words - sizes.text, (n, sizes.text), generator=generator)} for n in (2, 1, 3)]
    cases[0][IDS][:, sizes.text // 2 :] = 0
    return Graph(
        role=TEXT,
        module=text.eval(),
        inputs=cases[0],
        outputs=(PREFIX,),
        dynamic={IDS: {0: "images"}},
        output_axes={PREFIX: {0: "images"}},
        cases=cases[1:],
        tolerance=tolerance,
    )


def step_graph(dalle: Dalle, tolerance: float) -> Graph:
    """One call over R = B·k rows of W tokens behind the texts of B images."""
    sizes, rows = dalle.sizes, {0: "rows"}
    cases = [_case(sizes, call) for call in _CALLS]
    caches, shifts = _cache_names(sizes), _shift_names(sizes)
    presents = tuple(f"next_{name}" for name in caches)
    dynamic: dict[str, Mapping[int, str]] = {name: {0: "rows", 1: "width"} for name in ("token", "position")}
    dynamic |= dict.fromkeys(("new_length", "last_position", *shifts), rows)
    dynamic |= {f"last_position.{pattern.name}": rows for pattern in sizes.patterns}
    dynamic |= {PREFIX: {0: "images"}}
    outputs: dict[str, Mapping[int, str]] = {"logits": rows}
    axes = {name: rows if pattern else {0: "rows", 2: "positions"} for name, pattern in caches.items()}
    read = tuple(f"next_{name}" for name in shifts)
    return Graph(
        role=STEP,
        module=_Step(dalle).eval(),
        inputs=cases[0],
        outputs=("logits", *presents, *read),
        dynamic=dynamic | axes,
        output_axes=outputs | {f"next_{name}": axis for name, axis in axes.items()} | dict.fromkeys(read, rows),
        cases=cases[1:],
        tolerance=tolerance,
        in_place=dict(zip(presents, caches)),
        filled="last_position",
    )


def states(sizes: DalleSizes) -> tuple[StateSpec, ...]:
    """The manifest's states: compact and full caches, the text, and what shifted tokens leave behind."""
    caches = [StateSpec("kv", name, f"next_{name}", pattern=pattern) for name, pattern in _cache_names(sizes).items()]
    shifts = [StateSpec("shift", name, f"next_{name}", pattern=_GRID) for name in _shift_names(sizes)]
    return (*caches, StateSpec("memory", PREFIX), *shifts)


def patterns(sizes: DalleSizes) -> tuple[PatternSpec, ...]:
    """The manifest's patterns: those of attention, and the grid that tokens are shifted on."""
    grid = (PatternSpec(_GRID, "row", sizes.positions, sizes.grid),) if sizes.shifted else ()
    return (*sizes.patterns, *grid)


def _cache_names(sizes: DalleSizes) -> dict[str, str]:
    """Names of all caches, with their patterns."""
    return {f"{kind}.{n}": name for n, name in enumerate(sizes.attention) for kind in ("key", "value")}


def _shift_names(sizes: DalleSizes) -> list[str]:
    return [f"shift.{branch}" for branch in range(sizes.branches if sizes.shifted else 0)]


def _case(sizes: DalleSizes, call: _Call) -> dict[str, Tensor]:
    """Random inputs of one call: of the whole text, or of one cell behind it."""
    images, beams, wanted = call
    rows, text = images * beams, sizes.positions
    generator = torch.Generator().manual_seed(10 * rows + images)
    cell = None if wanted is None else min(wanted, sizes.cells - 1)
    past, width = (0, text) if cell is None else (text + cell, 1)
    case = {
        "token": torch.randint(sizes.codebook, (rows, width), generator=generator),
        "position": (past + torch.arange(width)).expand(rows, -1).contiguous(),
        "new_length": torch.full((rows,), width, dtype=torch.int32),
        "last_position": torch.full((rows,), past + width - 1, dtype=torch.int32),
        "total_length": torch.tensor([past + width], dtype=torch.int32),
    }
    for pattern in sizes.patterns:
        filled = pattern.filled(past + width)
        case[f"last_position.{pattern.name}"] = torch.full((rows,), filled - 1, dtype=torch.int32)
        case[f"total_length.{pattern.name}"] = torch.tensor([filled], dtype=torch.int32)
    case[PREFIX] = torch.randn(images, text, sizes.width, generator=generator)
    lengths = {pattern.name: pattern.positions for pattern in sizes.patterns} | {FULL: past + width + 3}
    for name, pattern_name in _cache_names(sizes).items():
        shape = (rows, sizes.heads, lengths[pattern_name], sizes.head_width)
        case[name] = torch.randn(*shape, generator=generator)
    for name in _shift_names(sizes):
        case[name] = torch.randn(rows, sizes.width // 2, generator=generator)
    return case
