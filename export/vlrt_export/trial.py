"""A staged bundle on trial: some graphs replaced by candidates, and what its graphs are called with on record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlrt.bundle import Bundle
from vlrt.engines import Array, EngineOptions, Session, Sessions
from vlrt.engines.prepared import open_file
from vlrt.manifest import GraphSpec

Shapes = tuple[tuple[str, tuple[int, ...]], ...]

KEPT_OF_A_SHAPE = 2
"""Calls on record of each shape; of graphs without caches more are kept, for they are what ranges are found on."""

CALIBRATING = 32


@dataclass(frozen=True)
class Call:
    """One call of a graph, as it was.

    Args:
        inputs: by name, copied before the call.
        outputs: of a bound call, shapes and dtypes by name; empty otherwise.
        shared: of a bound call, output -> input whose buffer it is.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        return tuple(sorted((name, array.shape) for name, array in self.inputs.items()))

    def ready(self, session: Session) -> Callable[[], dict[str, Array]]:
        """The call as something to make again and again, on buffers of its own where it was bound."""
        if not self.outputs:
            return lambda: session.run(**self.inputs)
        inputs = {name: array.copy() for name, array in self.inputs.items()}
        outputs = {name: np.zeros(*described) for name, described in self.outputs.items()}
        outputs |= {name: inputs[source] for name, source in self.shared.items()}
        run = session.bind(inputs, outputs)

        def again() -> dict[str, Array]:
            run()
            return {name: value for name, value in outputs.items() if name not in self.shared}

        return again


@dataclass
class Record:
    """The calls of one graph: how many of each shape there were, and some of them."""

    counts: dict[Shapes, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def add(self, call: Call) -> None:
        shapes = call.shapes
        self.counts[shapes] = self.counts.get(shapes, 0) + 1
        most = KEPT_OF_A_SHAPE if call.shared or not _is_small(call) else CALIBRATING
        if self.counts[shapes] <= most:
            self.calls.append(call)

    def by_shape(self) -> list[tuple[Call, int]]:
        """One call of each shape, and how often that shape was called."""
        first = {call.shapes: call for call in reversed(self.calls)}
        return [(call, self.counts[shapes]) for shapes, call in first.items()]


def _is_small(call: Call) -> bool:
    return sum(array.nbytes for array in call.inputs.values()) < 8 << 20


class _Recording:
    """A session that keeps what it is called with."""

    def __init__(self, session: Session, record: Record, wanted: Callable[[], bool]) -> None:
        self.spec = session.spec
        self._session, self._record, self._wanted = session, record, wanted

    def run(self, **arrays: Array) -> dict[str, Array]:
        if self._wanted():
            self._record.add(Call({name: array.copy() for name, array in arrays.items()}))
        return self._session.run(**arrays)

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        run = self._session.bind(inputs, outputs)
        places = {array.ctypes.data: name for name, array in inputs.items() if array.size}
        shared = {name: places[a.ctypes.data] for name, a in outputs.items() if a.size and a.ctypes.data in places}
        described = {name: (array.shape, array.dtype.name) for name, array in outputs.items()}

        def call() -> None:
            if self._wanted():
                self._record.add(Call({name: array.copy() for name, array in inputs.items()}, described, shared))
            run()

        return call

    def end_profile(self) -> Path:
        return self._session.end_profile()


class TrialSessions(Sessions):
    """Sessions of a staged bundle.

    Args:
        bundle: the staged one.
        replaced: role -> signature and path of the graph to run in its place.
        recorded: whether calls are kept.
    """

    def __init__(
        self, bundle: Bundle, replaced: Mapping[str, tuple[GraphSpec, Path]] | None = None, recorded: bool = False
    ) -> None:
        super().__init__(bundle, EngineOptions())
        self.records: dict[str, Record] = {}
        self._replaced = dict(replaced or {})
        self._made: dict[str, Session] = {}
        self._recorded = recorded

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Calls within are no use of the bundle, only questions of the gate."""
        before, self._recorded = self._recorded, False
        try:
            yield
        finally:
            self._recorded = before

    def prepare(self, roles: Iterable[str]) -> None:
        super().prepare([role for role in roles if role not in self._replaced])

    def get(self, role: str) -> Session:
        if role not in self._made:
            self._made[role] = self._make(role)
        return self._made[role]

    def release(self, roles: Iterable[str]) -> None:
        roles = list(roles)
        super().release(roles)
        for role in roles:
            self._made.pop(role, None)

    def _make(self, role: str) -> Session:
        if role in self._replaced:
            session: Session = open_file(*self._replaced[role], self.options)
        else:
            session = super().get(role)
        if not self._recorded:
            return session
        return _Recording(session, self.records.setdefault(role, Record()), lambda: self._recorded)
