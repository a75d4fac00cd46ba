"""NVIDIA's driver by its C interface: which GPUs there are, their memory, and copies in the order of one stream.

The driver's library is there wherever a GPU works, whichever CUDA toolkit onnxruntime or TensorRT were built with; they
and we share each GPU's primary context. So no package is needed for it, and none can have the wrong version.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import weakref
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from vlrt.device_memory import Array, Block, DeviceArray
from vlrt.errors import EngineError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_INSTALL = "install NVIDIA's driver (`nvidia-smi` then lists the GPU), or use `--device cpu`"
_OUT_OF_MEMORY, _NO_DEVICE = 2, 100
_ON_DEVICE, _NON_BLOCKING = 2, 1
_MAJOR, _MINOR = 75, 76
"""Numbers of `CUmemorytype`, `CUstream_flags` and `CUdevice_attribute` in cuda.h."""


_SIDE = (
    *(("XInBytes", c_size_t), ("Y", c_size_t), ("Z", c_size_t), ("LOD", c_size_t), ("MemoryType", c_uint)),
    *(("Host", c_void_p), ("Device", c_uint64), ("Array", c_void_p), ("Reserved", c_void_p)),
    *(("Pitch", c_size_t), ("Lines", c_size_t)),
)


class Copy3D(ctypes.Structure):
    """`CUDA_MEMCPY3D_v2` of cuda.h."""

    _fields_ = (
        *((f"src{name}", kind) for name, kind in _SIDE),
        *((f"dst{name}", kind) for name, kind in _SIDE),
        *(("WidthInBytes", c_size_t), ("Height", c_size_t), ("Depth", c_size_t)),
    )


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpy3DAsync_v2": (POINTER(Copy3D), c_void_p),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU: its number, its name, its compute capability (``9.0``) and its memory in bytes."""

    index: int
    name: str
    capability: str
    memory: int


class Driver:
    """The driver's library.

    Raises:
        EngineError: there is no driver, or it finds no GPU.
    """

    def __init__(self, library: str = _LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError:
            raise EngineError(f"no NVIDIA driver: `{library}` cannot be loaded", _INSTALL) from None
        for name, types in _SIGNATURES.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = types, c_int
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function of the driver.

        Raises:
            EngineError: it failed; its name and the driver's own words are given.
        """
        status = getattr(self._library, name)(*arguments)
        if status == 0:
            return
        if status == _NO_DEVICE:
            raise EngineError("the NVIDIA driver finds no GPU", _INSTALL)
        said = c_char_p()
        self._library.cuGetErrorString(status, byref(said))
        reason = (said.value or b"unknown error").decode("utf-8", "replace")
        hint = "take a smaller batch or model, or end what else uses the GPU" if status == _OUT_OF_MEMORY else ""
        raise EngineError(f"`{name}` failed: {reason} ({status})", hint)

    def gpus(self) -> list[Gpu]:
        """The GPUs that the process may see, in the order of their numbers."""
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return [self._gpu(index) for index in range(count.value)]

    def _gpu(self, index: int) -> Gpu:
        name, memory = ctypes.create_string_buffer(256), c_size_t()
        device = self.device(index)
        self.call("cuDeviceGetName", name, len(name), device)
        self.call("cuDeviceTotalMem_v2", byref(memory), device)
        numbers = [c_int(), c_int()]
        for number, attribute in zip(numbers, (_MAJOR, _MINOR)):
            self.call("cuDeviceGetAttribute", byref(number), attribute, device)
        capability = ".".join(str(number.value) for number in numbers)
        return Gpu(index, name.value.decode("utf-8", "replace"), capability, memory.value)

    def device(self, index: int) -> c_int:
        found = c_int()
        self.call("cuDeviceGet", byref(found), index)
        return found


@cache
def driver() -> Driver:
    """The installed driver, loaded once; raises as `Driver`."""
    return Driver()


def gpu(index: int, loaded: Driver | None = None) -> Gpu:
    """The GPU of a number.

    Raises:
        EngineError: there is no driver, or no such GPU; those that there are are named.
    """
    found = (loaded or driver()).gpus()
    if index < len(found):
        return found[index]
    have = ", ".join(f"`cuda:{one.index}` ({one.name})" for one in found) or "none"
    raise EngineError(f"there is no GPU {index}: the driver finds {have}", "use one of those, or `--device cpu`")


class CudaMemory:
    """Memory of one GPU; see `vlrt.device_memory.DeviceMemory`. Copies go through a stream of its own."""

    kind = "cuda"

    def __init__(self, index: int, loaded: Driver | None = None) -> None:
        self._driver = loaded or driver()
        self.gpu = gpu(index, self._driver)
        self.index = index
        self._context = c_void_p()
        # Never released: onnxruntime and TensorRT hold the same one until the process ends.
        self._driver.call("cuDevicePrimaryCtxRetain", byref(self._context), self._driver.device(index))
        self._enter()
        stream = c_void_p()
        self._driver.call("cuStreamCreate", byref(stream), _NON_BLOCKING)
        self.stream = int(stream.value or 0)
        self._release(self, "cuStreamDestroy_v2", self.stream)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        self._enter()
        address = c_uint64()
        owner = _Owner(self)
        array = DeviceArray(0, shape, np.dtype(dtype), owner)
        self._driver.call("cuMemAlloc_v2", byref(address), max(array.nbytes, 1))
        self._release(owner, "cuMemFree_v2", address.value)
        if array.nbytes:
            self._driver.call("cuMemsetD8Async", address, 0, array.nbytes, self.stream)
        return DeviceArray(address.value, shape, np.dtype(dtype), owner)

    def upload(self, array: Array, target: DeviceArray) -> None:
        _check(array, target)
        self._enter()
        if array.nbytes:
            # From pageable memory the driver returns once it has read the array.
            self._driver.call("cuMemcpyHtoDAsync_v2", target.address, array.ctypes.data, array.nbytes, self.stream)

    def download(self, source: DeviceArray, array: Array) -> None:
        _check(array, source)
        self._enter()
        if array.nbytes:
            self._driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, source.address, array.nbytes, self.stream)

    def copy(self, block: Block) -> None:
        self._enter()
        copy = Copy3D(WidthInBytes=block.width, Height=block.lines, Depth=block.planes)
        for side, address in (("src", block.source), ("dst", block.target)):
            setattr(copy, f"{side}MemoryType", _ON_DEVICE)
            setattr(copy, f"{side}Device", address)
            setattr(copy, f"{side}Pitch", block.pitch)
            setattr(copy, f"{side}Lines", block.plane_lines)
        self._driver.call("cuMemcpy3DAsync_v2", byref(copy), self.stream)

    def finish(self) -> None:
        self._enter()
        self._driver.call("cuStreamSynchronize", self.stream)

    def _enter(self) -> None:
        """The driver's context is a matter of each thread."""
        self._driver.call("cuCtxSetCurrent", self._context)

    def _release(self, owner: object, function: str, handle: int) -> None:
        """Gives `handle` back once nobody holds `owner`; what is left at the end goes with the process."""
        weakref.finalize(owner, _give_back, self._driver, self._context, function, handle).atexit = False


class _Owner:
    """What the arrays of one allocation hold in common."""

    def __init__(self, memory: CudaMemory) -> None:
        self._memory = memory


def _give_back(loaded: Driver, context: c_void_p, function: str, handle: int) -> None:
    with contextlib.suppress(EngineError):  # a context that failed is of no use to anyone any more
        loaded.call("cuCtxSetCurrent", context)
        loaded.call(function, handle)


def _check(array: Array, there: DeviceArray) -> None:
    if array.shape != there.shape or array.dtype != there.dtype or not array.flags.c_contiguous:
        got, expected = f"{array.dtype} {list(array.shape)}", f"{there.dtype} {list(there.shape)}"
        raise ValueError(f"cannot copy between {got} and {expected}, or it is not C-contiguous")
