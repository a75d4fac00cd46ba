"""A graph in reduced precision: which kinds there are, how each is made, and what it leaves in fp32."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx

from vlrt.manifest import GraphSpec
from vlrt_export.graph_weights import GraphWeights
from vlrt_export.precision import store_exact_halves
from vlrt_export.reduced_convolutions import (
    Restorable,
    convolution_sizes,
    convolutions,
    fold,
    quantise_convolutions,
)
from vlrt_export.reduced_products import Rewrite, matrices, to_blocks, to_int8
from vlrt_export.reduced_storage import to_halves

FP32, FP16, INT8, INT8_BLOCKS, INT4 = "fp32", "fp16", "int8", "int8-blocks", "int4"
KINDS: Mapping[str, tuple[str, ...]] = {
    "fp16": (FP16,),
    "int8": (INT8, INT8_BLOCKS),
    "int4": (INT4,),
    "auto": (INT8, INT8_BLOCKS, INT4),
}
"""What `--precision` tries on each graph."""

_REWRITES: Mapping[str, Rewrite] = {
    FP16: to_halves,
    INT8: to_int8,
    INT8_BLOCKS: to_blocks(8),
    INT4: to_blocks(4),
}


@dataclass(frozen=True)
class Candidate:
    """A written graph in reduced precision.

    Args:
        role: of the graph.
        kind: one of `KINDS`.
        spec, path: its signature and file.
        kernels: how many nodes of each reduced kernel it has.
        kept: names of its parts that stay in fp32.
    """

    role: str
    kind: str
    spec: GraphSpec
    path: Path
    kernels: Mapping[str, int]
    kept: frozenset[str]

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, *(self.path.parent / name for name in self.spec.external))

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files)

    def discard(self) -> None:
        """Removes its files."""
        shutil.rmtree(self.path.parent)


class Workshop:
    """Makes candidates of one graph.

    Args:
        role: of the graph.
        spec, path: the fp32 graph.
        folder: where candidates go.
        calls: its inputs on photographs, for the ranges of convolutions.
    """

    def __init__(
        self, role: str, written: tuple[GraphSpec, Path], folder: Path, calls: Sequence[Mapping[str, Any]]
    ) -> None:
        self.role, self.folder, self._calls = role, folder, calls
        self.spec, self.path = written
        folder.mkdir(exist_ok=True)
        self._folded = folder / f"{role}.folded.onnx"
        folded = fold(self.path, self._folded)
        self._convolves = folded and bool(convolutions(self._folded))
        plain = matrices(GraphWeights(self.path))
        self._source = self._folded if folded and len(matrices(GraphWeights(self._folded))) > len(plain) else self.path
        self._made = 0

    @property
    def size(self) -> int:
        """Bytes of the fp32 graph."""
        return sum((self.path.parent / name).stat().st_size for name in (self.path.name, *self.spec.external))

    def parts(self, kind: str) -> list[str]:
        """Names of what a kind would reduce, each of which can be kept."""
        if kind == FP16:
            return []
        return matrices(GraphWeights(self._source)) + self.convolutions(kind)

    def convolutions(self, kind: str) -> list[str]:
        """Names of the convolutions among them."""
        return convolutions(self._folded) if self._reduces_convolutions(kind) else []

    def weight(self, parts: Collection[str]) -> int:
        """Elements of the weights of some parts."""
        return sum(self._elements[part] for part in parts)

    @cached_property
    def _elements(self) -> dict[str, int]:
        graph = GraphWeights(self._source)
        found = {name: graph.size(name) for name in matrices(graph)}
        return found | (convolution_sizes(self._folded) if self._convolves else {})

    def restorable(self, made: Candidate) -> Restorable | None:
        """A candidate with convolutions in int8, to have single ones of them as they were."""
        return Restorable(made.path, self._folded) if self._reduces_convolutions(made.kind) else None

    def make(self, kind: str, kept: Collection[str] = ()) -> Candidate | None:
        """Writes a candidate; `None` where nothing is left to reduce."""
        # A folder each: an engine may still have the weights of the one before mapped.
        self._made += 1
        place = self.folder / f"{self._made}"
        place.mkdir()
        path, kernels = place / f"{self.role}.onnx", dict[str, int]()
        source = self.path if kind == FP16 else self._source
        if self._reduces_convolutions(kind):
            source = place / f"{self.role}.convolved.onnx"
            kernels |= quantise_convolutions(self._folded, source, kept, self._calls)
        graph = GraphWeights(source, path)
        kernels |= _REWRITES[kind](graph, kept)
        changed = graph.changed
        external = graph.save()
        if not changed and not any(kernels.values()):
            return None
        halved = kind == FP16 or (not external and self._halve_rest(path))
        spec = replace(self.spec, precision=_arithmetic(kind), storage=FP16 if halved else "", external=external)
        return Candidate(self.role, kind, spec, path, kernels, frozenset(kept))

    def _halve_rest(self, path: Path) -> bool:
        """Stores what stays in fp32 as the original did, where that was fp16: folding widened it."""
        if self.spec.storage != FP16:
            return False
        model = onnx.load(path)
        halved = store_exact_halves(model)
        onnx.save_model(model, path)
        return halved

    def _reduces_convolutions(self, kind: str) -> bool:
        return self._convolves and kind == INT8 and bool(self._calls)


def _arithmetic(kind: str) -> str:
    return {FP16: FP32, INT8_BLOCKS: INT8}.get(kind, kind)
