"""A device whose memory is not the host's, for engines that keep tensors there: every byte that crosses is noted."""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlrt.device_memory import Block, Buffer, DeviceArray


class FakeMemory:
    """`vlrt.device_memory.DeviceMemory` in arrays of its own, which onnxruntime's CPU provider reads as a device's."""

    kind, index, stream = "cpu", 0, 77

    def __init__(self) -> None:
        self.held: list[np.ndarray] = []
        self.sent: list[int] = []
        self.fetched: list[int] = []
        self.copied: list[Block] = []
        self.calls: list[str] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        bare = DeviceArray(0, shape, np.dtype(dtype))
        memory = np.zeros(max(bare.nbytes, 1), np.uint8)
        self.held.append(memory)
        return DeviceArray(memory.ctypes.data, shape, np.dtype(dtype), memory)

    def upload(self, array: np.ndarray, target: DeviceArray) -> None:
        assert (array.shape, array.dtype) == (target.shape, target.dtype)
        assert array.flags.c_contiguous
        self._inside(target.address, target.nbytes)
        ctypes.memmove(target.address, array.ctypes.data, target.nbytes)
        self.sent.append(target.nbytes)
        self.calls.append("upload")

    def download(self, source: DeviceArray, array: np.ndarray) -> None:
        assert (array.shape, array.dtype) == (source.shape, source.dtype)
        self._inside(source.address, source.nbytes)
        ctypes.memmove(array.ctypes.data, source.address, source.nbytes)
        self.fetched.append(source.nbytes)
        self.calls.append("download")

    def copy(self, block: Block) -> None:
        assert block.width <= block.pitch
        reach = ((block.planes - 1) * block.plane_lines + block.lines - 1) * block.pitch + block.width
        self._inside(block.source, reach)
        self._inside(block.target, reach)
        for plane in range(block.planes):
            for line in range(block.lines):
                at = (plane * block.plane_lines + line) * block.pitch
                ctypes.memmove(block.target + at, block.source + at, block.width)
        self.copied.append(block)

    def finish(self) -> None:
        self.calls.append("finish")

    def contents(self, array: DeviceArray) -> np.ndarray:
        """What lies there, as the device sees it."""
        return np.frombuffer(ctypes.string_at(array.address, array.nbytes), array.dtype).reshape(array.shape)

    def _inside(self, address: int, size: int) -> None:
        assert self.holds(address, size)

    def holds(self, address: int, size: int) -> bool:
        return any(m.ctypes.data <= address and address + size <= m.ctypes.data + m.nbytes for m in self.held)


class CopiesWhenBound:
    """An inference session that treats host inputs as a GPU's does: it copies them when they are bound, not later."""

    def __init__(self, session: Any, memory: FakeMemory) -> None:
        self._real, self._memory = session, memory
        self._sess = session._sess

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def io_binding(self) -> Any:
        binding, memory, kept = self._real.io_binding(), self._memory, {}
        bind_input = binding.bind_input

        def copying(name: str, kind: str, index: int, dtype: type, shape: tuple[int, ...], address: int) -> None:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if not memory.holds(address, size):
                kept[name] = np.frombuffer(ctypes.string_at(address, max(size, 1)), np.uint8).copy()
                address = kept[name].ctypes.data
            bind_input(name, kind, index, dtype, shape, address)

        binding.bind_input = copying
        return binding


def session_on(loaded: Any, memory: FakeMemory) -> Any:
    """A session loaded on the CPU as if it were on the device of `memory`."""
    there = copy.copy(loaded)
    there._session, there._reads_host = CopiesWhenBound(loaded._session, memory), False
    return there


def on_host(arrays: Mapping[str, Buffer]) -> set[str]:
    """Names of the arrays that cross at every run."""
    return {name for name, array in arrays.items() if isinstance(array, np.ndarray)}
