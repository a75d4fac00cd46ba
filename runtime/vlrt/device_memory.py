"""Memory of a device, as sessions that keep tensors there see it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A dense tensor in a device's memory: where it lies, and what an array would say of itself.

    Args:
        address: of the first element.
        owner: keeps the memory; it goes back with the last array that refers to it.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object = field(repr=False, default=None)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, start: int, shape: tuple[int, ...]) -> DeviceArray:
        """Another tensor in the same memory, `start` bytes behind this one's first."""
        inner = DeviceArray(self.address + start, shape, self.dtype, self.owner)
        if start < 0 or start + inner.nbytes > self.nbytes:
            raise ValueError(f"bytes {start} to {start + inner.nbytes} are outside an array of {self.nbytes}")
        return inner


Buffer = Array | DeviceArray
"""What a session can be bound to."""


@dataclass(frozen=True)
class Block:
    """Bytes to be copied within a device: `planes` of `lines` of `width` bytes each.

    Args:
        source, target: addresses of the first bytes; the two blocks must not overlap.
        pitch: bytes from one line to the next.
        plane_lines: lines from one plane to the next.
    """

    source: int
    target: int
    width: int
    lines: int
    planes: int
    pitch: int
    plane_lines: int


def whole(source: DeviceArray, target: DeviceArray) -> Block:
    """The block of all of an array."""
    return Block(source.address, target.address, source.nbytes, 1, 1, source.nbytes, 1)


class DeviceMemory(Protocol):
    """Memory of one device; what is asked of it happens in the order in which it was asked."""

    kind: str
    index: int

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        """New memory, all zeros, so that what was never written is at least a number."""

    def upload(self, array: Array, target: DeviceArray) -> None:
        """Copies a host array, which may change as soon as this returns."""

    def download(self, source: DeviceArray, array: Array) -> None:
        """Copies to a host array, which holds the values after `finish`."""

    def copy(self, block: Block) -> None:
        """Copies within the device."""

    def finish(self) -> None:
        """Waits until everything that was asked for has happened."""


class Mirror:
    """A run on a device between host arrays: inputs go there before it, outputs come back after it.

    Args:
        inputs, outputs: by name; arrays that lie on the device already are taken as they are.
    """

    def __init__(self, memory: DeviceMemory, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> None:
        self._memory = memory
        self._sent, self.inputs = self._placed(inputs)
        self._fetched, self.outputs = self._placed(outputs)

    def around(self, launch: Callable[[], None]) -> Callable[[], None]:
        """The whole: sends, launches, fetches, and waits."""

        def run() -> None:
            for array, there in self._sent:
                self._memory.upload(array, there)
            launch()
            for array, there in self._fetched:
                self._memory.download(there, array)
            self._memory.finish()

        return run

    def _placed(self, arrays: dict[str, Buffer]) -> tuple[list[tuple[Array, DeviceArray]], dict[str, DeviceArray]]:
        crossing: list[tuple[Array, DeviceArray]] = []
        placed: dict[str, DeviceArray] = {}
        for name, array in arrays.items():
            if isinstance(array, DeviceArray):
                placed[name] = array
            else:
                placed[name] = self._memory.empty(array.shape, array.dtype)
                crossing.append((array, placed[name]))
        return crossing, placed
