"""Sessions that can keep tensors in their device's memory from one run to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vlrt.device_memory import Array, Buffer, DeviceArray, DeviceMemory
from vlrt.engines.session import check_inputs, check_outputs
from vlrt.errors import EngineError
from vlrt.manifest import GraphSpec


class DeviceSession(ABC):
    """A `vlrt.engines.Session` whose buffers may be `DeviceArray`s of its `memory`, which then never cross.

    Host arrays that are bound are read before every run and written after it.

    Args:
        in_place: whether an output may be bound to the memory of the input that it extends.
    """

    spec: GraphSpec
    memory: DeviceMemory
    in_place: bool

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        """As `vlrt.engines.Session.bind`, over buffers on either side."""
        axes = check_inputs(self.spec, inputs)
        check_outputs(self.spec, outputs, axes)
        for name, array in (*inputs.items(), *outputs.items()):
            if isinstance(array, np.ndarray) and not array.flags.c_contiguous:
                raise EngineError(f"buffer `{name}` is not C-contiguous")
        return self._bound(dict(inputs), dict(outputs))

    def keep(self, arrays: Mapping[str, Array]) -> dict[str, DeviceArray]:
        """Sends arrays to the device once, for bindings that read them again and again."""
        kept: dict[str, DeviceArray] = {}
        for name, array in arrays.items():
            kept[name] = self.memory.empty(array.shape, array.dtype)
            self.memory.upload(np.ascontiguousarray(array), kept[name])
        self.memory.finish()
        return kept

    @abstractmethod
    def run(self, **arrays: Array) -> dict[str, Array]:
        """As `vlrt.engines.Session.run`."""

    @abstractmethod
    def end_profile(self) -> Path:
        """As `vlrt.engines.Session.end_profile`."""

    @abstractmethod
    def _bound(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> Callable[[], None]:
        """The run over buffers that fit; when it returns, host outputs are filled."""
