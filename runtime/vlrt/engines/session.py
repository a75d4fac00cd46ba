"""What a loaded graph can do, whichever engine runs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vlrt.device_memory import Array, Buffer
from vlrt.errors import EngineError, UsageError
from vlrt.manifest import GraphSpec, TensorSpec

__all__ = ["Array", "EngineOptions", "Session", "check_array", "check_inputs", "check_outputs"]


@dataclass(frozen=True)
class EngineOptions:
    """How sessions are opened.

    Args:
        device: ``cpu``, ``cuda:0``, ``tensorrt:0``, ``coreml``; ``cuda:0:graph`` replays bound runs of one shape as a
            CUDA graph; ``openvino:CPU`` computes in bf16 where the CPU has it, ``openvino:CPU:fp32`` in fp32.
        threads: threads of the CPU's pool; 0 means every processor this process may use.
        profile: folder for the engine's own profile of each graph, or `None`.
    """

    device: str = "cpu"
    threads: int = 0
    profile: Path | None = None

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UsageError(f"`threads` is {self.threads}, expected 0 (all) or more")

    @property
    def thread_count(self) -> int:
        if self.threads:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Session(Protocol):
    """One loaded graph on one device."""

    spec: GraphSpec

    def run(self, **arrays: Array) -> dict[str, Array]:
        """Runs the graph once; arrays by input name, results by output name. Shapes and dtypes are checked."""

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        """Binds buffers once; calling the result runs the graph on whatever they hold then, without allocation.

        The arrays must be C-contiguous and outlive the returned callable (it keeps references).
        """

    def end_profile(self) -> Path:
        """Stops the engine's profile, asked for in the options, and returns its path."""


def check_array(spec: TensorSpec, array: Buffer, axes: dict[str, int], what: str) -> None:
    """Raises `EngineError` unless `array` fits `spec`; named axes must agree through `axes`, which grows."""
    if array.dtype != np.dtype(spec.dtype):
        raise EngineError(f"{what} `{spec.name}` has dtype `{array.dtype}`, expected `{spec.dtype}`")
    fits = array.ndim == len(spec.shape)
    for size, axis in zip(array.shape, spec.shape):
        fits = fits and size == (axis if isinstance(axis, int) else axes.setdefault(axis, size))
    if not fits:
        shown = "[" + ", ".join(map(str, spec.shape)) + "]"
        raise EngineError(f"{what} `{spec.name}` has shape {list(array.shape)}, expected {shown}")


def check_inputs(spec: GraphSpec, arrays: Mapping[str, Buffer]) -> dict[str, int]:
    """Raises `EngineError` unless `arrays` are exactly the graph's inputs; returns the sizes of its named axes."""
    names = {tensor.name for tensor in spec.inputs}
    if set(arrays) != names:
        problem = ", ".join(f"`{n}`" for n in sorted(names ^ set(arrays)))
        raise EngineError(f"inputs of `{spec.file}` do not match: missing or unknown {problem}")
    axes: dict[str, int] = {}
    for tensor in spec.inputs:
        check_array(tensor, arrays[tensor.name], axes, "input")
    return axes


def check_outputs(spec: GraphSpec, arrays: Mapping[str, Buffer], axes: dict[str, int]) -> None:
    """Raises `EngineError` unless `arrays` are exactly the graph's outputs, with the axes that the inputs decided."""
    names = {tensor.name for tensor in spec.outputs}
    if set(arrays) != names:
        problem = ", ".join(f"`{n}`" for n in sorted(names ^ set(arrays)))
        raise EngineError(f"outputs of `{spec.file}` do not match: missing or unknown {problem}")
    for tensor in spec.outputs:
        check_array(tensor, arrays[tensor.name], axes, "output")
        array = arrays[tensor.name]
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise EngineError(f"output `{tensor.name}` is read-only")
