"""A device whose memory is not the host's, for engines that keep tensors there: every byte that crosses is noted."""

from __future__ import annotations

import ctypes
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
        assert any(m.ctypes.data <= address and address + size <= m.ctypes.data + m.nbytes for m in self.held)


def on_host(arrays: Mapping[str, Buffer]) -> set[str]:
    """Names of the arrays that cross at every run."""
    return {name for name, array in arrays.items() if isinstance(array, np.ndarray)}
