"""Sessions on TensorRT, over engines that `vlrt export --target tensorrt` built on this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from vlrt.bundle import Bundle
from vlrt.device_memory import Array, Buffer, Mirror
from vlrt.engines.cuda_driver import CudaMemory, Gpu, gpu
from vlrt.engines.device_session import DeviceSession
from vlrt.engines.session import EngineOptions, check_inputs
from vlrt.engines.tensorrt_store import EngineStore, Machine
from vlrt.errors import BundleError, EngineError, UsageError
from vlrt.manifest import GraphSpec, TensorSpec

_INSTALL = "pip install 'vlrt[tensorrt]', or use `--device cuda:0`"
_REBUILD = "build it again with `--target tensorrt --profile AXIS=SMALLEST:USUAL:LARGEST,…`"


def load_library() -> ModuleType:
    """Imports tensorrt.

    Raises:
        EngineError: it is not installed, or its libraries do not load.
    """
    try:
        import tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"tensorrt cannot be imported: {error}", _INSTALL) from None
    if not hasattr(tensorrt, "Runtime"):
        raise EngineError("tensorrt is installed without its libraries", _INSTALL)
    return cast(ModuleType, tensorrt)


def machine(library: ModuleType, found: Gpu) -> Machine:
    """What engines that are built here now are tied to."""
    return Machine(found.name, found.capability, str(library.__version__))


def make_log(library: ModuleType) -> Any:
    """A logger for TensorRT that prints nothing and keeps the errors, newest last, in `errors`."""
    severity = library.ILogger.Severity

    class Log(library.ILogger):  # type: ignore[misc, name-defined] # the class is known when the library is
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def reason(log: Any) -> str:
    """What TensorRT said last of an error, to be put behind a colon."""
    return str(log.errors[-1]).strip().splitlines()[0][:300] if log.errors else "TensorRT does not say why"


def start(library: ModuleType, kind: str, log: Any) -> Any:
    """TensorRT's ``Runtime`` or ``Builder``.

    Raises:
        EngineError: the driver is too old for this TensorRT, or the GPU is not served by it any more.
    """
    try:
        return getattr(library, kind)(log)
    except (TypeError, RuntimeError):  # its bindings say so when there is nothing that they could wrap
        what = f"TensorRT {library.__version__} does not start: {reason(log)}"
        raise EngineError(what, "update NVIDIA's driver, or install the TensorRT that it and the GPU go with") from None


def device_index(device: str) -> int:
    """Number of the GPU in ``tensorrt:0``."""
    _, _, index = device.partition(":")
    if index and not index.isdecimal():
        raise UsageError(f"`{device}` has the index `{index}`, expected a number", "for example `tensorrt:0`")
    return int(index or 0)


def open_tensorrt(bundle: Bundle, role: str, options: EngineOptions) -> TensorRtSession:
    """Loads the engine of one graph of a bundle.

    Raises:
        BundleError: the bundle lacks the graph.
        EngineError: no tensorrt, driver or GPU, or no engine that was built for them; never built on the way.
    """
    index = device_index(options.device)
    library = load_library()
    if options.profile is not None:
        raise EngineError("TensorRT's engines are not profiled here", "use NVIDIA's `nsys profile`")
    memory = CudaMemory(index)
    plan = EngineStore(bundle, role).find(machine(library, gpu(index)))
    return TensorRtSession(bundle.manifest.graphs[role], plan, memory, library)


class TensorRtSession(DeviceSession):
    """One engine; every binding has an execution context of its own, so threads may run theirs side by side.

    Args:
        spec: the graph that it was built of.
        plan: the serialised engine.
        memory: of the GPU that it was built for.
        library: tensorrt.
    """

    in_place = False

    def __init__(self, spec: GraphSpec, plan: bytes, memory: CudaMemory, library: ModuleType) -> None:
        self.spec = spec
        self.memory: CudaMemory = memory
        self._library = library
        self._log = make_log(library)
        self._runtime = start(library, "Runtime", self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"the engine of `{spec.file}` cannot be loaded: {reason(self._log)}", _REBUILD)
        self._check_signature()
        self._lock = threading.Lock()
        self._last: tuple[object, dict[str, Array], dict[str, Array], Callable[[], None]] | None = None

    def run(self, **arrays: Array) -> dict[str, Array]:
        check_inputs(self.spec, arrays)
        shapes = {name: array.shape for name, array in arrays.items()}
        with self._lock:
            if self._last is None or self._last[0] != shapes:
                self._last = (shapes, *self._buffers(arrays))
            _, inputs, outputs, call = self._last
            for name, array in arrays.items():
                inputs[name][...] = array
            call()
            return {name: array.copy() for name, array in outputs.items()}

    def end_profile(self) -> Path:
        raise EngineError(f"`{self.spec.file}` was loaded without a profile")

    def _buffers(self, arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array], Callable[[], None]]:
        """Arrays for calls of these shapes, and the call."""
        inputs = {name: np.empty(array.shape, array.dtype) for name, array in arrays.items()}
        context = self._context({name: array.shape for name, array in inputs.items()})
        outputs = {t.name: np.empty(tuple(context.get_tensor_shape(t.name)), t.dtype) for t in self.spec.outputs}
        return inputs, outputs, self._launched(context, dict(inputs), dict(outputs))

    def _bound(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> Callable[[], None]:
        context = self._context({name: array.shape for name, array in inputs.items()})
        for name, array in outputs.items():
            expected = tuple(context.get_tensor_shape(name))
            if expected != array.shape:
                raise EngineError(f"output `{name}` of `{self.spec.file}` is {list(expected)}, not {list(array.shape)}")
        return self._launched(context, inputs, outputs)

    def _launched(self, context: Any, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> Callable[[], None]:
        mirror = Mirror(self.memory, inputs, outputs)
        for name, array in (*mirror.inputs.items(), *mirror.outputs.items()):
            self._succeed(context.set_tensor_address(name, array.address))

        def launch() -> None:
            self._succeed(context.execute_async_v3(self.memory.stream))

        return mirror.around(launch)

    def _context(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """A context whose inputs have these shapes."""
        context = self._engine.create_execution_context()
        self._succeed(context is not None)
        self._succeed(context.set_optimization_profile_async(self._profile(shapes), self.memory.stream))
        for name, shape in shapes.items():
            self._succeed(context.set_input_shape(name, shape))
        try:
            self._succeed(not context.infer_shapes())
        except RuntimeError as error:
            raise EngineError(f"`{self.spec.file}` failed: {error}") from None
        return context

    def _profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The first of the engine's profiles that takes the shapes."""
        misfit = ""
        for index in range(max(self._engine.num_optimization_profiles, 1)):
            misfit = self._misfit(index, shapes)
            if not misfit:
                return index
        raise EngineError(misfit, _REBUILD)

    def _misfit(self, index: int, shapes: Mapping[str, tuple[int, ...]]) -> str:
        for name, shape in shapes.items():
            if all(isinstance(axis, int) for axis in self.spec.input(name).shape):
                continue
            smallest, _, largest = (tuple(dims) for dims in self._engine.get_tensor_profile_shape(name, index))
            if not all(a <= size <= b for a, size, b in zip(smallest, shape, largest)):
                takes = f"its engine takes {list(smallest)} to {list(largest)}"
                return f"input `{name}` of `{self.spec.file}` has shape {list(shape)}, {takes}"
        return ""

    def _check_signature(self) -> None:
        """The engine must be what the manifest says, or memory bound by the manifest would be overrun."""
        engine, mode = self._engine, self._library.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        sides: tuple[tuple[Any, tuple[TensorSpec, ...]], ...] = (
            (mode.INPUT, self.spec.inputs),
            (mode.OUTPUT, self.spec.outputs),
        )
        for kind, tensors in sides:
            have = {name for name in names if engine.get_tensor_mode(name) == kind}
            want = {tensor.name: np.dtype(tensor.dtype) for tensor in tensors}
            if have != set(want):
                raise BundleError(f"the engine of `{self.spec.file}` has {sorted(have)}, not {sorted(want)}", _REBUILD)
            for name, dtype in want.items():
                found = np.dtype(self._library.nptype(engine.get_tensor_dtype(name)))
                on_host = engine.get_tensor_location(name) == self._library.TensorLocation.HOST
                if found != dtype or on_host:
                    where = " on the host" if on_host else ""
                    what = f"`{name}` of the engine of `{self.spec.file}` is {found}{where}, not {dtype}"
                    raise BundleError(what, _REBUILD)

    def _succeed(self, done: bool) -> None:
        if not done:
            raise EngineError(f"`{self.spec.file}` failed: {reason(self._log)}")
