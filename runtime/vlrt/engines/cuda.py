"""Sessions of ONNX Runtime's CUDA provider, with states that stay in the GPU's memory."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from vlrt.bundle import Bundle
from vlrt.device_memory import Array, Buffer, DeviceArray, DeviceMemory, whole
from vlrt.engines.cuda_driver import CudaMemory
from vlrt.engines.device_session import DeviceSession
from vlrt.engines.onnxruntime import CAPTURED, OnnxRuntimeSession, find_provider, load_library
from vlrt.engines.session import EngineOptions
from vlrt.errors import BundleError, EngineError
from vlrt.manifest import GraphSpec
from vlrt.onnx_signature import contributed_operators

_HALVES_ONLY = "GroupQueryAttention"
"""The provider has it for halves alone; of floats the session would leave it to the CPU, caches and all."""

_LIBRARIES = "pip install 'vlrt[gpu]', which brings CUDA's and cuDNN's libraries, or use `--device cpu`"
_GRAPH, _NO_GRAPH = "gpu_graph_id", "-1"


_Graph = tuple[dict[str, DeviceArray], dict[str, DeviceArray], Callable[[], None]]
"""What a captured graph reads, what it writes, and how it is run."""


def open_cuda(bundle: Bundle, role: str, options: EngineOptions) -> CudaSession:
    """Loads a graph of a bundle on a GPU.

    Raises:
        BundleError: the bundle lacks the graph, or its file is damaged.
        EngineError: no such provider, driver or GPU, or the provider lacks an operator of the graph.
    """
    library = load_library()
    _, settings = find_provider(library, options.device)
    memory = CudaMemory(int(settings["device_id"]))
    spec, path = bundle.graph(role)
    refuse_unserved(spec, path)
    captures = options.device.endswith(f":{CAPTURED}")
    said = _load_cuda(library)
    try:
        loaded = OnnxRuntimeSession(spec, path, options)
    except EngineError as error:
        raise EngineError(f"{error.what}{said}", _LIBRARIES) from None
    except BundleError as error:
        if not captures:
            raise
        raise EngineError(error.what, f"use `--device cuda:{memory.index}`, without `:{CAPTURED}`") from None
    return CudaSession(loaded, memory, library, captures)


def refuse_unserved(spec: GraphSpec, path: Path) -> None:
    """Raises `EngineError` for a graph that the provider would quietly leave to the CPU in its most costly part."""
    if _HALVES_ONLY not in contributed_operators(path) or any(t.dtype == "float16" for t in spec.inputs):
        return
    what = f"`{path.name}` attends with `{_HALVES_ONLY}` in float32, which onnxruntime's CUDA provider has in float16"
    raise EngineError(what, "`vlrt export NAME --target cuda` writes the bundle for it; or use `--device cpu`")


def _load_cuda(library: ModuleType) -> str:
    """Loads CUDA's libraries from their packages, where they are installed so; what went wrong, to be said later."""
    if not hasattr(library, "preload_dlls"):
        return ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(Exception):
        library.preload_dlls()
    failed = [line for line in said.getvalue().splitlines() if line.startswith("Failed")]
    return f"; {failed[0]}" if failed else ""


class CudaSession(DeviceSession):
    """One graph on the CUDA provider. Host arrays cross as onnxruntime sees fit, `DeviceArray`s stay.

    Args:
        loaded: the graph, loaded with the provider.
        memory: of the provider's GPU.
        library: onnxruntime.
        captures: whether bound runs are captured as CUDA graphs and replayed. Runs that extend a state in place are
            not, for what they launch depends on its length.
    """

    in_place = True

    def __init__(self, loaded: OnnxRuntimeSession, memory: DeviceMemory, library: ModuleType, captures: bool) -> None:
        self.spec = loaded.spec
        self.memory = memory
        self._loaded = loaded
        self._library = library
        self._captures = captures
        self._graphs: dict[object, _Graph] = {}
        self._one_at_a_time = threading.Lock()

    def run(self, **arrays: Array) -> dict[str, Array]:
        if not self._captures:
            return self._loaded.run(**arrays)
        return self._loaded.run_with(self._run_options(_NO_GRAPH), arrays)

    def end_profile(self) -> Path:
        return self._loaded.end_profile()

    def _bound(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> Callable[[], None]:
        captures = self._captures and not _extends_in_place(inputs, outputs)
        self._check_places(name for name, array in inputs.items() if captures or isinstance(array, DeviceArray))
        if captures:
            return self._captured(inputs, outputs)
        options = self._run_options(_NO_GRAPH) if self._captures else None
        run = self._loaded.bind_placed(inputs, outputs, (self.memory.kind, self.memory.index), options)

        def waited() -> None:
            self.memory.finish()  # onnxruntime's stream is another one
            run()

        return waited

    def _check_places(self, names: Iterable[str]) -> None:
        """What is bound on the device must be read there: onnxruntime would send it to the CPU now, and never again."""
        places = self._loaded.places_of_inputs()
        for name in names:
            if places[name] != self.memory.kind:
                what = f"`{name}` of `{self.spec.file}` is read on the CPU: the CUDA provider lacks what takes it"
                raise EngineError(what, "use `--device cpu` for this bundle")

    def _captured(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> Callable[[], None]:
        """A graph belongs to addresses, so what is bound is brought to those of the one graph of its shapes."""
        with self._one_at_a_time:
            shapes = tuple((name, array.shape) for name, array in sorted(inputs.items()))
            graph = self._graphs.get(shapes)
            if graph is None:
                graph = self._graphs[shapes] = self._new_graph(inputs, outputs)
        there, back, launch = graph

        def run() -> None:
            with self._one_at_a_time:  # a capture takes in whatever another thread launches
                for name, array in inputs.items():
                    self._bring(array, there[name])
                self.memory.finish()
                launch()
                for name, array in outputs.items():
                    self._fetch(back[name], array)
                self.memory.finish()

        return run

    def _new_graph(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> _Graph:
        there = {name: self.memory.empty(array.shape, array.dtype) for name, array in inputs.items()}
        back = {name: self.memory.empty(array.shape, array.dtype) for name, array in outputs.items()}
        options = self._run_options(str(len(self._graphs) + 1))
        return there, back, self._loaded.bind_placed(there, back, (self.memory.kind, self.memory.index), options)

    def _bring(self, array: Buffer, target: DeviceArray) -> None:
        if isinstance(array, DeviceArray):
            self.memory.copy(whole(array, target))
        else:
            self.memory.upload(array, target)

    def _fetch(self, source: DeviceArray, array: Buffer) -> None:
        if isinstance(array, DeviceArray):
            self.memory.copy(whole(source, array))
        else:
            self.memory.download(source, array)

    def _run_options(self, graph: str) -> Any:
        options = self._library.RunOptions()
        options.add_run_config_entry(_GRAPH, graph)
        return options


def _extends_in_place(inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> bool:
    read = {array.address for array in inputs.values() if isinstance(array, DeviceArray)}
    return any(array.address in read for array in outputs.values() if isinstance(array, DeviceArray))
