"""Sessions on OpenVINO, which reads a bundle's ONNX graphs as they are."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from vlrt.engines.session import Array, EngineOptions, check_inputs, check_outputs
from vlrt.errors import BundleError, EngineError, UsageError
from vlrt.manifest import GraphSpec
from vlrt.onnx_signature import signature

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Last part of the device string -> OpenVINO's name; left out, the device decides: bf16 where the CPU has it."""

_IMPORTING = threading.Lock()
_INSTALL = "pip install 'vlrt[openvino]'"
_READS_CACHES_OTHERWISE = "GroupQueryAttention"
"""OpenVINO takes it, but attends over the whole buffer of a cache, filled or not."""
_BAD_GRAPH = "copy the bundle again, or export it again"
_LEFT_OUT = re.compile(r"No conversion rule found for operations:\s*(.+)")
_LOCATION = re.compile(r"^(Exception from |Check '|FrontEnd API failed|\[ ?[A-Z]+ ?\] *$)")


def load_library() -> ModuleType:
    """Imports openvino, without what would report the import to its makers over the network.

    Raises:
        EngineError: it is not installed, or is damaged.
    """
    with _IMPORTING, _hidden("openvino_telemetry"):
        try:
            import openvino
        except ImportError as error:
            raise EngineError(f"openvino cannot be imported: {error}", _INSTALL) from None
    return cast(ModuleType, openvino)


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Makes the import of `module`, which OpenVINO can do without, fail for the while."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment] # how Python spells it
    try:
        yield
    finally:
        del sys.modules[module]


def devices() -> dict[str, str]:
    """Device strings that OpenVINO serves on this machine -> the precision each computes in by default.

    Raises:
        EngineError: openvino is not installed.
    """
    core = load_library().Core()
    names = {dtype: name for name, dtype in PRECISIONS.items()}
    found: dict[str, str] = {}
    for device in core.available_devices:
        default = core.get_property(device, "INFERENCE_PRECISION_HINT").to_string()
        found[f"openvino:{device}"] = names.get(default, default)
    return found


class OpenVinoSession:
    """One ONNX graph loaded by OpenVINO; see `vlrt.engines.session.Session`.

    Threads may call it at once: each call has an inference request of its own.
    """

    def __init__(self, spec: GraphSpec, path: Path, options: EngineOptions) -> None:
        self.spec = spec
        library = load_library()
        device, precision = _parse(options.device)
        core = library.Core()
        _check_device(core, device, options.device)
        model = _read(core, path)
        _check_signature(model, spec)
        try:
            self._model = core.compile_model(model, device, _settings(device, precision, options))
        except Exception as error:  # noqa: BLE001 - openvino raises RuntimeError and kinds of its own alike
            raise EngineError(f"`{path.name}` cannot be compiled for `{options.device}`: {_reason(error)}") from None
        self._tensor = library.Tensor
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._profile = options.profile / f"{path.stem}.openvino.json" if options.profile is not None else None
        self._calls: list[list[dict[str, Any]]] = []

    def run(self, **arrays: Array) -> dict[str, Array]:
        check_inputs(self.spec, arrays)
        request = self._take()
        # Results are copied out, for the request's own memory serves the next call.
        kept = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self._set(request, kept)
        self._infer(request)
        found = {t.name: np.array(request.get_tensor(self._model.output(t.name)).data) for t in self.spec.outputs}
        with self._lock:
            self._idle.append(request)
        return found

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        axes = check_inputs(self.spec, inputs)
        check_outputs(self.spec, outputs, axes)
        for name, array in (*inputs.items(), *outputs.items()):
            if not array.flags.c_contiguous:
                raise EngineError(f"buffer `{name}` is not C-contiguous")
        request = self._model.create_infer_request()
        self._set(request, inputs)
        for name, array in outputs.items():
            request.set_tensor(self._model.output(name), self._shared(array))
        return _BoundRun(partial(self._infer, request), (dict(inputs), dict(outputs)))

    def end_profile(self) -> Path:
        """Writes what every node took, as Chrome's trace viewer reads it, and returns the file's path."""
        if self._profile is None:
            raise EngineError(f"`{self.spec.file}` was loaded without a profile")
        self._profile.write_text(json.dumps([event for call in self._calls for event in call]), "utf-8")
        return self._profile

    def _take(self) -> Any:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._model.create_infer_request()

    def _set(self, request: Any, inputs: Mapping[str, Array]) -> None:
        for name, array in inputs.items():
            request.set_tensor(self._model.input(name), self._shared(array))

    def _shared(self, array: Array) -> Any:
        """The array's own memory as a tensor."""
        return self._tensor(array if array.flags.writeable else np.asarray(_Unlocked(array)), shared_memory=True)

    def _infer(self, request: Any) -> None:
        try:
            request.infer(share_outputs=True)
        except Exception as error:  # noqa: BLE001 - see above
            raise EngineError(f"`{self.spec.file}` failed: {_reason(error)}") from None
        if self._profile is not None:
            with self._lock:
                self._calls.append(_events(request.get_profiling_info(), len(self._calls)))


class _BoundRun:
    """A run over bound buffers; holds the arrays, since a request knows their addresses alone."""

    def __init__(self, run: Callable[[], None], keep: object) -> None:
        self._run, self._keep = run, keep

    def __call__(self) -> None:
        self._run()


class _Unlocked:
    """A read-only array as OpenVINO wants its inputs, which it only reads, to be declared."""

    def __init__(self, array: Array) -> None:
        self._array = array
        described = array.__array_interface__
        self.__array_interface__ = described | {"data": (described["data"][0], False)}


def _parse(device: str) -> tuple[str, str]:
    """OpenVINO's device and precision of a device string ``openvino[:DEVICE[:PRECISION]]``."""
    _, *parts = device.split(":")
    name, precision = [*parts, "", ""][:2]
    if len(parts) > 2 or (precision and precision not in PRECISIONS):
        known = ", ".join(f"`{p}`" for p in PRECISIONS)
        raise UsageError(f"unknown device `{device}`", f"for example `openvino:CPU`, or with a precision of {known}")
    return name or "CPU", PRECISIONS.get(precision, "")


def _check_device(core: Any, name: str, asked: str) -> None:
    available = core.available_devices
    if name not in available:
        have = ", ".join(f"`openvino:{device}`" for device in available) or "none"
        raise EngineError(f"device `{asked}` cannot be had: this OpenVINO finds {have}", "use one of those, or `cpu`")


def _read(core: Any, path: Path) -> Any:
    """The model in a file; not by the front end's own Python class, which reports to its makers as well."""
    signature(path)  # on a file that is no ONNX graph OpenVINO tries its other readers, loudly
    try:
        model = core.read_model(path)
    except Exception as error:  # noqa: BLE001 - see above
        left_out = _LEFT_OUT.search(str(error))
        if left_out:
            raise _refused(path, left_out[1].removeprefix("com.microsoft.")) from None
        raise BundleError(f"`{path.name}` cannot be loaded by openvino: {_reason(error)}", _BAD_GRAPH) from None
    if any(node.get_type_name() == _READS_CACHES_OTHERWISE for node in model.get_ops()):
        raise _refused(path, _READS_CACHES_OTHERWISE)
    return model


def _refused(path: Path, operator: str) -> EngineError:
    what = f"`{path.name}` has the operator `{operator}`, which is ONNX Runtime's own; OpenVINO cannot run it"
    return EngineError(what, "use `--device cpu` for this bundle")


def _settings(device: str, precision: str, options: EngineOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": options.profile is not None}
    if device == "CPU":
        settings |= {"INFERENCE_NUM_THREADS": options.thread_count, "NUM_STREAMS": 1}
    return settings | ({"INFERENCE_PRECISION_HINT": precision} if precision else {})


def _check_signature(model: Any, spec: GraphSpec) -> None:
    """The graph must be what the manifest says, or buffers bound by the manifest would be overrun."""
    for kind, found, expected in (("inputs", model.inputs, spec.inputs), ("outputs", model.outputs, spec.outputs)):
        have = {name: port for port in found for name in port.names}
        want = {t.name: t for t in expected}
        if not set(want) <= set(have) or len(found) != len(want):
            raise BundleError(f"`{spec.file}` has the {kind} {sorted(have)}, the manifest says {sorted(want)}")
        for name, tensor in want.items():
            shape, dtype = have[name].partial_shape, np.dtype(have[name].element_type.to_dtype())
            sizes = [a.get_length() if a.is_static else None for a in shape] if shape.rank.is_static else None
            fits = sizes is None or len(sizes) == len(tensor.shape)
            # What OpenVINO works out of an axis that the manifest names may be a size, never the other way round.
            fits = fits and all(a in (None, b) for a, b in zip(sizes or (), tensor.shape) if isinstance(b, int))
            if not fits or dtype != np.dtype(tensor.dtype):
                what = f"`{name}` of `{spec.file}` is {dtype} {shape}"
                raise BundleError(f"{what}, the manifest says {tensor.dtype} {list(tensor.shape)}")


def _events(nodes: Any, call: int) -> list[dict[str, Any]]:
    """Nodes of one call as trace events, one after the other; in microseconds."""
    events: list[dict[str, Any]] = []
    start = 0
    for node in nodes:
        if node.status.name != "EXECUTED":
            continue
        duration = round(node.real_time.total_seconds() * 1e6)
        named = {"op_name": node.node_type, "kernel": node.exec_type}
        events.append({"cat": "Node", "ph": "X", "pid": 0, "tid": call, "name": node.node_name, "ts": start,
                       "dur": duration, "args": named})  # fmt: skip
        start += duration
    return events


def _reason(error: Exception) -> str:
    """The line that says what happened; before it come the places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not _LOCATION.match(line)]
    return (telling or lines or [type(error).__name__])[0][:300]
