"""Sessions on OpenVINO, which reads a bundle's ONNX graphs as they are."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np

from vlrt.engines.openvino_model import Cut, check_signature, cut, read_model, reason
from vlrt.engines.session import Array, EngineOptions, check_inputs, check_outputs
from vlrt.errors import EngineError, UsageError
from vlrt.manifest import GraphSpec

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Last part of the device string -> OpenVINO's name; left out, the device decides: bf16 where the CPU has it."""

_IMPORTING, _LOADING = threading.Lock(), threading.Lock()
"""One graph is loaded after the other: parts of OpenVINO's reading of models are not made for several threads."""

_INSTALL = "pip install 'vlrt[openvino]'"


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
        # Its tables of types are made on first use, and two threads that do so wait for each other for ever.
        openvino.Type.f32.to_dtype()
        np.array(openvino.Tensor(np.zeros(1, np.float32), shared_memory=True).data)
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
        with _LOADING:
            self._load(library, path, options)
        self._tensor = library.Tensor
        self._idle: list[_Request] = []
        self._lock = threading.Lock()
        self._profile = options.profile / f"{path.stem}.openvino.json" if options.profile is not None else None
        self._calls: list[list[dict[str, Any]]] = []

    def _load(self, library: ModuleType, path: Path, options: EngineOptions) -> None:
        spec = self.spec
        device, precision = _parse(options.device)
        core = library.Core()
        _check_device(core, device, options.device)
        model = read_model(core, path)
        check_signature(model, spec)
        settings = _settings(device, precision, options)
        parts = Cut(model) if precision == PRECISIONS["fp32"] else cut(library, core, path, model)
        try:
            self._model = core.compile_model(parts.body, device, settings)
            exact = settings | {"INFERENCE_PRECISION_HINT": PRECISIONS["fp32"]}
            self._head = core.compile_model(parts.head, device, exact) if parts.waves else None
        except Exception as error:  # noqa: BLE001 - openvino raises RuntimeError and kinds of its own alike
            raise EngineError(f"`{path.name}` cannot be compiled for `{options.device}`: {reason(error)}") from None
        self._parts = parts

    def run(self, **arrays: Array) -> dict[str, Array]:
        check_inputs(self.spec, arrays)
        request = self._take()
        # Results are copied out, for the request's own memory serves the next call.
        kept = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self._set(request, kept)
        self._infer(request)
        found = {t.name: np.array(request.body.get_tensor(self._model.output(t.name)).data) for t in self.spec.outputs}
        with self._lock:
            self._idle.append(request)
        return found

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Callable[[], None]:
        axes = check_inputs(self.spec, inputs)
        check_outputs(self.spec, outputs, axes)
        for name, array in (*inputs.items(), *outputs.items()):
            if not array.flags.c_contiguous:
                raise EngineError(f"buffer `{name}` is not C-contiguous")
        request = self._request()
        self._set(request, inputs)
        for name, array in outputs.items():
            request.body.set_tensor(self._model.output(name), self._tensor(array, shared_memory=True))
        return _BoundRun(partial(self._infer, request), (dict(inputs), dict(outputs)))

    def end_profile(self) -> Path:
        """Writes what every node took, as Chrome's trace viewer reads it, and returns the file's path."""
        if self._profile is None:
            raise EngineError(f"`{self.spec.file}` was loaded without a profile")
        self._profile.write_text(json.dumps([event for call in self._calls for event in call]), "utf-8")
        return self._profile

    def _take(self) -> _Request:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._request()

    def _request(self) -> _Request:
        head = self._head.create_infer_request() if self._head is not None else None
        return _Request(self._model.create_infer_request(), head, [self._model.input(w) for w in self._parts.waves])

    def _set(self, request: _Request, inputs: Mapping[str, Array]) -> None:
        for name, array in inputs.items():
            shared = self._tensor(_writable(array), shared_memory=True)
            request.body.set_tensor(self._model.input(name), shared)
            if self._head is not None and name in self._parts.inputs:
                request.head.set_tensor(self._head.input(name), shared)

    def _infer(self, request: _Request) -> None:
        try:
            request()
        except Exception as error:  # noqa: BLE001 - see above
            raise EngineError(f"`{self.spec.file}` failed: {reason(error)}") from None
        if self._profile is not None:
            with self._lock:
                self._calls.append(_events(request.body.get_profiling_info(), len(self._calls)))


@dataclass(frozen=True)
class _Request:
    """One call at a time of a model and of its head, whose outputs go to the model's inputs `waves`."""

    body: Any
    head: Any
    waves: list[Any]

    def __call__(self) -> None:
        if self.head is not None:
            self.head.infer(share_outputs=True)
            for number, wave in enumerate(self.waves):
                self.body.set_tensor(wave, self.head.get_output_tensor(number))
        self.body.infer(share_outputs=True)


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


def _writable(array: Array) -> Array:
    return array if array.flags.writeable else np.asarray(_Unlocked(array))


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


def _settings(device: str, precision: str, options: EngineOptions) -> dict[str, Any]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": options.profile is not None}
    if device == "CPU":
        settings |= {"INFERENCE_NUM_THREADS": options.thread_count, "NUM_STREAMS": 1}
    return settings | ({"INFERENCE_PRECISION_HINT": precision} if precision else {})


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
