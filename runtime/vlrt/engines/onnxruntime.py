"""Sessions on ONNX Runtime, with any of its execution providers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from vlrt.device_memory import Buffer, DeviceArray
from vlrt.engines import custom_kernels
from vlrt.engines.graph_cache import WEIGHTS, multiplies_bytes, processor
from vlrt.engines.session import Array, EngineOptions, check_inputs, check_outputs
from vlrt.errors import BundleError, EngineError, UsageError
from vlrt.manifest import GraphSpec

PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "pip install 'vlrt[cpu]'"),
    "cuda": ("CUDAExecutionProvider", "pip uninstall onnxruntime, then pip install 'vlrt[gpu]'"),
    "coreml": ("CoreMLExecutionProvider", "it comes with onnxruntime on macOS"),
    "dml": ("DmlExecutionProvider", "pip install onnxruntime-directml on Windows"),
}
"""Device -> provider, and what to install where it is missing."""


Place = tuple[str, int]

CAPTURED = "graph"
"""Last part of the device string ``cuda:0:graph``: runs of fixed shape are captured once and replayed."""

_READ_HOST = ("cpu", "coreml")
"""Kinds of device that read and write the host's memory where it lies."""

_SPIN_MICROSECONDS = "200"
_BOUNDS_SPINNING = (1, 31)
"""Version of onnxruntime that is known to have `session.intra_op.spin_duration_us`."""


def load_library() -> ModuleType:
    """Imports onnxruntime.

    Raises:
        EngineError: it is not installed, or is damaged.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"onnxruntime cannot be imported: {error}", "pip install 'vlrt[cpu]'") from None
    if not hasattr(onnxruntime, "InferenceSession"):
        # Two of its distributions in one environment overwrite each other, and removing one leaves a shell.
        hint = "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'vlrt[cpu]' or 'vlrt[gpu]'"
        raise EngineError("onnxruntime is installed but empty", hint)
    return cast(ModuleType, onnxruntime)


@dataclass(frozen=True)
class Form:
    """In which form a graph is loaded.

    Args:
        optimised: onnxruntime optimised it already.
        kernels: it has operators of our own.
        save_to: where to save it as it is optimised now.
        runs: whether it will run, or is only optimised and saved.
        blocked: whether onnxruntime may bring pictures into its own layout, where channels stand in blocks.
    """

    optimised: bool = False
    kernels: bool = False
    save_to: Path | None = None
    runs: bool = True
    blocked: bool = True


PLAIN = Form()


class OnnxRuntimeSession:
    """One ONNX graph loaded by ONNX Runtime; see `vlrt.engines.session.Session`."""

    def __init__(self, spec: GraphSpec, path: Path, options: EngineOptions, form: Form = PLAIN) -> None:
        self.spec, self.path, self.device = spec, path, options.device
        library = load_library()
        provider = find_provider(library, options.device)
        if path.suffix != ".onnx":
            raise BundleError(f"`{path.name}` is not an ONNX graph by its name", "export the bundle again")
        settings = _settings(library, options, Path(spec.file).stem)
        _set_form(library, settings, form)
        try:
            self._session = library.InferenceSession(str(path), settings, providers=[provider], **_arguments(form))
        except Exception as error:  # noqa: BLE001 - onnxruntime raises one plain Exception class per status
            what = f"`{path.name}` cannot be loaded by onnxruntime: {_first_line(error)}"
            raise BundleError(what, "copy the bundle again, or export it again") from None
        _check_provider(self._session, options.device)
        try:
            _check_signature(self._session, spec)
        except UnicodeDecodeError:
            raise BundleError(f"`{path.name}` has names that are not UTF-8", "do not trust this bundle") from None
        self._names = [tensor.name for tensor in spec.outputs]
        self._reads_host = options.device.partition(":")[0] in _READ_HOST

    def run(self, **arrays: Array) -> dict[str, Array]:
        return self.run_with(None, arrays)

    def run_with(self, options: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """As `run`, with onnxruntime's own options of a run."""
        check_inputs(self.spec, arrays)
        try:
            results = self._session.run(self._names, dict(arrays), options)
        except Exception as error:  # noqa: BLE001 - see above
            raise EngineError(f"`{self.spec.file}` failed: {_first_line(error)}") from None
        return dict(zip(self._names, results))

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        axes = check_inputs(self.spec, inputs)
        check_outputs(self.spec, outputs, axes)
        return self.bind_placed(inputs, outputs)

    def bind_placed(
        self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], place: Place = ("cpu", 0), run: Any = None
    ) -> Callable[[], None]:
        """Binds buffers that were checked already.

        Args:
            place: where those that are not the host's lie: onnxruntime's name and number of the device.
            run: onnxruntime's options of the runs.
        """
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(*_place(name, array, place))
        for name, array in outputs.items():
            binding.bind_output(*_place(name, array, place))
        # What the device cannot read where it lies is copied there when it is bound, not when it is run.
        crossing = [] if self._reads_host else [_place(n, a, place) for n, a in inputs.items() if not _is_there(a)]
        return _BoundRun(self._session, (binding, run, crossing), (inputs, outputs), self.spec.file)

    def places_of_inputs(self) -> dict[str, str]:
        """Where the graph reads each input: onnxruntime's names of devices, in small letters."""
        infos = zip(self._session.get_inputs(), self._session.get_input_memory_infos())
        return {tensor.name: str(info.name).lower() for tensor, info in infos}

    def end_profile(self) -> Path:
        """Stops profiling and returns the profile's path."""
        return Path(self._session.end_profiling())


class _BoundRun:
    """A run over bound buffers; holds the arrays so that their memory stays."""

    def __init__(self, session: Any, bound: tuple[Any, Any, list[Any]], keep: object, file: str) -> None:
        self._run = session._sess.run_with_iobinding  # the public wrapper costs a microsecond per step
        binding, self._options, self._crossing = bound
        self._bind_input = binding.bind_input
        self._binding, self._keep, self._file = binding._iobinding, keep, file

    def __call__(self) -> None:
        try:
            for arguments in self._crossing:
                self._bind_input(*arguments)
            self._run(self._binding, self._options)
        except Exception as error:  # noqa: BLE001 - see above
            raise EngineError(f"`{self._file}` failed: {_first_line(error)}") from None


def find_provider(library: ModuleType, device: str) -> Any:
    """What onnxruntime is to be told of a device: its provider's name, with options where it has some.

    Raises:
        UsageError: the device string means nothing here.
        EngineError: this onnxruntime was built without the provider.
    """
    kind, index, mode = [*device.split(":", 2), "", ""][:3]
    if kind not in PROVIDERS:
        known = ", ".join(f"`{k}`" for k in PROVIDERS)
        raise UsageError(f"unknown device `{device}`", f"onnxruntime serves {known}; with an index: `cuda:0`")
    if mode and (kind, mode) != ("cuda", CAPTURED):
        raise UsageError(f"unknown device `{device}`", f"behind an index there is `cuda:0:{CAPTURED}` alone")
    if index and not index.isdecimal():
        raise UsageError(f"`{device}` has the index `{index}`, expected a number", "for example `cuda:0`")
    name, install = PROVIDERS[kind]
    if name not in library.get_available_providers():
        have = ", ".join(library.get_available_providers())
        raise EngineError(f"device `{device}` needs {name}, this onnxruntime has {have}", install)
    if kind != "cuda":
        return name
    return name, {"device_id": index or "0", **({"enable_cuda_graph": "1"} if mode else {})}


def _settings(library: ModuleType, options: EngineOptions, stem: str) -> Any:
    settings = library.SessionOptions()
    settings.log_severity_level = 4  # what it has to say comes as an exception too
    settings.intra_op_num_threads = options.thread_count
    settings.inter_op_num_threads = 1
    # Each session has a pool of its own: a pool of the process would forbid other users of onnxruntime theirs. Threads
    # that spin between two kernels save their waking (a seventh of a caption's time), but spinning on after the graph
    # they keep the cores from the next one (twice the time), so they do it briefly or, where that cannot be said, not.
    bounded = _version(library) >= _BOUNDS_SPINNING
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if bounded else "0")
    if bounded:
        settings.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    if not multiplies_bytes(processor()):
        # Pairs of products of eight bits overflow sixteen; the engine is to take the exact way, twice as slow.
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if options.profile is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(options.profile / stem)
    return settings


def _arguments(form: Form) -> dict[str, Any]:
    # By default the Python wrapper falls back to the CPU, when it loads a graph and again when one fails.
    without = {} if form.blocked else {"disabled_optimizers": ["NchwcTransformer"]}
    return {"enable_fallback": 0, **without}


def _set_form(library: ModuleType, settings: Any, form: Form) -> None:
    if form.kernels:
        custom_kernels.register(settings)
    if not form.runs:  # then what onnxruntime would pack for its own kernels is for nothing
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if form.optimised:
        settings.graph_optimization_level = library.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif form.save_to is not None:
        settings.optimized_model_filepath = str(form.save_to)
        settings.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
        settings.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")


def _version(library: ModuleType) -> tuple[int, ...]:
    return tuple(int(part) for part in str(library.__version__).split(".")[:2] if part.isdecimal())


def _check_provider(session: Any, device: str) -> None:
    """Sees that the session runs where it was asked to: a provider whose libraries do not load is only left out."""
    name, _ = PROVIDERS[device.partition(":")[0]]
    if name not in session.get_providers():
        what = f"device `{device}` cannot be used: {name} did not start"
        raise EngineError(what, "install the driver and libraries that its log above misses, or use `--device cpu`")


def _check_signature(session: Any, spec: GraphSpec) -> None:
    """The graph must be what the manifest says, or buffers bound by the manifest would be overrun."""
    for kind, found, expected in (
        ("inputs", session.get_inputs(), spec.inputs),
        ("outputs", session.get_outputs(), spec.outputs),
    ):
        have, want = {t.name: t for t in found}, {t.name: t for t in expected}
        if set(have) != set(want):
            raise BundleError(f"`{spec.file}` has the {kind} {sorted(have)}, the manifest says {sorted(want)}")
        for name, tensor in want.items():
            fixed = zip(have[name].shape, tensor.shape)
            clash = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in fixed)
            if len(have[name].shape) != len(tensor.shape) or clash or not _same_type(have[name].type, tensor.dtype):
                what = f"`{name}` of `{spec.file}` is {have[name].type} {have[name].shape}"
                raise BundleError(f"{what}, the manifest says {tensor.dtype} {list(tensor.shape)}")


_TYPE_NAMES = {"float": "float32", "float16": "float16", "double": "float64"}


def _same_type(found: str, dtype: str) -> bool:
    inner = found.removeprefix("tensor(").removesuffix(")")
    return _TYPE_NAMES.get(inner, inner) == dtype


def _is_there(array: Buffer) -> bool:
    return isinstance(array, DeviceArray)


def _place(name: str, array: Buffer, place: Place) -> tuple[Any, ...]:
    """What onnxruntime is told of a buffer: name, device and its number, element type, shape, address."""
    at = place if _is_there(array) else ("cpu", 0)
    return name, *at, array.dtype.type, array.shape, _address(name, array)


def _address(name: str, array: Buffer) -> int:
    if isinstance(array, DeviceArray):
        return array.address
    if not array.flags.c_contiguous:
        raise EngineError(f"buffer `{name}` is not C-contiguous")
    return int(array.ctypes.data) if array.size else int(np.empty(1).ctypes.data)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]
