"""Named arrays of one picture: what conditional and unconditional rows of the denoisers are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from vlrt.diffusion_sections import StageSpec
from vlrt.engines import Array, Sessions
from vlrt.errors import BundleError
from vlrt.manifest import GraphSpec


@dataclass(frozen=True)
class Known:
    """Arrays by name, one row each.

    Args:
        conditional: everything that is known.
        unconditional: what is otherwise in unconditional rows.
        zeroed: what is zero there.
    """

    conditional: Mapping[str, Array] = field(default_factory=dict)
    unconditional: Mapping[str, Array] = field(default_factory=dict)
    zeroed: tuple[str, ...] = ()

    def with_arrays(self, arrays: Mapping[str, Array], unconditional: Mapping[str, Array] | None = None) -> Known:
        """With further arrays, which hold for both kinds of rows where nothing else is said."""
        kept = {name: array for name, array in self.unconditional.items() if name not in arrays}
        return replace(
            self, conditional={**self.conditional, **arrays}, unconditional={**kept, **(unconditional or {})}
        )

    def view(self, guided: bool) -> Mapping[str, Array]:
        """All arrays as conditional rows (`guided`) or unconditional ones see them."""
        if guided:
            return self.conditional
        zeros = {name: np.zeros_like(self.conditional[name]) for name in self.zeroed if name in self.conditional}
        return {**self.conditional, **self.unconditional, **zeros}


def prepare(stage: StageSpec, known: Known, sessions: Sessions, guided: bool) -> Known:
    """Runs the graphs whose outputs do not change over the steps.

    Args:
        guided: whether unconditional rows are needed too.
    """
    known = replace(known, zeroed=stage.zeroed)
    if not stage.prepare and not stage.prepare_unconditional:
        return known
    conditional = sessions.run_chain(stage.prepare, known.view(True))
    unconditional: dict[str, Array] = {}
    if guided:
        unconditional = sessions.run_chain(stage.prepare_unconditional or stage.prepare, known.view(False))
    return known.with_arrays(conditional, unconditional)


def stack_rows(graph: GraphSpec, given: Iterable[str], known: Known, guided: bool) -> dict[str, Array]:
    """What a graph takes besides `given`: unconditional rows first where `guided`, then conditional ones.

    Raises:
        BundleError: an input that nothing gives.
    """
    skipped = set(given)
    views = (known.view(False), known.view(True)) if guided else (known.view(True),)
    rows: dict[str, Array] = {}
    for tensor in graph.inputs:
        if tensor.name in skipped:
            continue
        if tensor.name not in known.conditional:
            raise BundleError(f"input `{tensor.name}` of `{graph.file}` comes from nowhere", "export it again")
        parts = [np.asarray(view[tensor.name], dtype=tensor.dtype) for view in views]
        rows[tensor.name] = np.ascontiguousarray(np.concatenate(parts))
    return rows
