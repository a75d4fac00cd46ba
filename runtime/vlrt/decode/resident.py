"""States of a decoding loop that stay in a device's memory: caches, recurrent states, and what is read of the images.

Between two calls of the step graph the loop says which row continues which; the rows are moved where they lie. What
crosses at every call is small: tokens, positions and lengths there, logits back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vlrt import _C
from vlrt.decode.buffers import Array, LoopShape, RowTensor, StepBuffers
from vlrt.device_memory import Block, DeviceArray, DeviceMemory
from vlrt.manifest import DecodeSpec


@runtime_checkable
class DeviceStepSession(Protocol):
    """What is asked of an engine that keeps states; see `vlrt.engines.device_session.DeviceSession`."""

    memory: DeviceMemory
    in_place: bool


class StateRows:
    """Tensors of one row shape and dtype, laid out one behind the other, so that one copy moves a row of all.

    Args:
        memory: of the device.
        tensors: their names, and the shape [heads, positions, width] of a row, or [width].
        rows: most rows.
        in_place: whether a call extends them where they are; else it reads one set and writes another.
    """

    def __init__(self, memory: DeviceMemory, tensors: Sequence[RowTensor], rows: int, in_place: bool) -> None:
        self.memory, self._names = memory, [tensor.name for tensor in tensors]
        self._row, self._dtype = tensors[0].shape, np.dtype(tensors[0].dtype)
        self._row_bytes, self._rows = tensors[0].row_bytes, rows
        self._in_place = in_place
        # One row more than a loop uses: there waits what would be overwritten when rows change places.
        shape = (len(tensors), rows + 1, *self._row)
        self._read = memory.empty(shape, self._dtype)
        self._written = self._read if in_place else memory.empty(shape, self._dtype)

    def inputs(self, rows: int) -> dict[str, DeviceArray]:
        """What a call reads, by the names of the tensors: the first `rows` rows."""
        return {name: self._part(self._read, index, rows) for index, name in enumerate(self._names)}

    def outputs(self, rows: int) -> dict[str, DeviceArray]:
        """What a call writes."""
        return {name: self._part(self._written, index, rows) for index, name in enumerate(self._names)}

    def fill(self, values: Mapping[str, Array]) -> None:
        """Sends what the first rows are to hold."""
        for index, name in enumerate(self._names):
            value = np.ascontiguousarray(values[name])
            self.memory.upload(value, self._part(self._read, index, len(value)))

    def select(self, sources: Sequence[int], before: int, filled: int) -> None:
        """Makes every row continue its source.

        Args:
            sources: row of the last call, by row of the next one.
            before: rows of the last call; a row beyond them that is its own source holds what it was filled with.
            filled: positions that any row has filled.
        """
        if self._in_place:
            moves = _C.row_moves(sources, self._rows)
        else:
            moves = [(source, row) for row, source in enumerate(sources) if source < before]
        for source, target in moves:
            self.memory.copy(self._block(source % (self._rows + 1), target % (self._rows + 1), filled))

    def _part(self, whole: DeviceArray, index: int, rows: int) -> DeviceArray:
        return whole.part(index * (self._rows + 1) * self._row_bytes, (rows, *self._row))

    def _block(self, source: int, target: int, filled: int) -> Block:
        """One row of every tensor; of a cache what is filled, head by head."""
        lines, length = (self._row[0], self._row[1]) if len(self._row) == 3 else (1, 1)
        pitch = self._row_bytes // lines
        return Block(
            source=self._written.address + source * self._row_bytes,
            target=self._read.address + target * self._row_bytes,
            width=pitch // length * min(filled, length),
            lines=lines,
            planes=len(self._names),
            pitch=pitch,
            plane_lines=lines * (self._rows + 1),
        )


class ResidentStates:
    """The states of one loop on a device.

    Args:
        session: the step graph's.
        spec: the manifest's decode section.
        shape: the loop's.
    """

    def __init__(self, session: DeviceStepSession, spec: DecodeSpec, shape: LoopShape) -> None:
        memory = session.memory
        self._outputs = {state.input: state.output for state in spec.states if state.output}
        kept = [tensor for tensor in shape.caches if not tensor.pattern]
        self._caches = [StateRows(memory, g, shape.max_rows, session.in_place) for g in _alike(kept)]
        self._recurrent = [StateRows(memory, g, shape.max_rows, False) for g in _alike(shape.recurrent)]
        self._memory = [StateRows(memory, g, shape.max_images, True) for g in _alike(shape.memory)]
        self.restart()

    def restart(self) -> None:
        """The next call is the first of a run: its states come from the loop's buffers."""
        self._rows = self._images = 0

    def prepare(self, buffers: StepBuffers, whole: StepBuffers) -> None:
        """Brings the states to where the next call expects them.

        Args:
            buffers: of the call.
            whole: of all rows and images of the loop.
        """
        if buffers.images != self._images:  # else no image has moved since
            for group in self._memory:
                group.fill(buffers.memory)
        if not self._rows:
            for group in self._recurrent:
                group.fill(whole.states)
        else:
            sources = buffers.sources.tolist()
            filled = int(buffers.past_lengths.max())
            for group in (*self._caches, *self._recurrent):
                group.select(sources, self._rows, filled)
        self._rows, self._images = buffers.rows, buffers.images

    def inputs(self, buffers: StepBuffers) -> dict[str, DeviceArray]:
        """By the names of the step graph's inputs."""
        found: dict[str, DeviceArray] = {}
        for group in (*self._caches, *self._recurrent):
            found |= group.inputs(buffers.rows)
        for group in self._memory:
            found |= group.inputs(buffers.images)
        return found

    def outputs(self, buffers: StepBuffers) -> dict[str, DeviceArray]:
        """By the names of the step graph's outputs."""
        found: dict[str, DeviceArray] = {}
        for group in (*self._caches, *self._recurrent):
            found |= {self._outputs[name]: array for name, array in group.outputs(buffers.rows).items()}
        return found


def _alike(tensors: Sequence[RowTensor]) -> list[list[RowTensor]]:
    groups: dict[tuple[Any, ...], list[RowTensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.shape, tensor.dtype), []).append(tensor)
    return list(groups.values())
