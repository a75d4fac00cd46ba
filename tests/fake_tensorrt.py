"""TensorRT's Python API as far as we call it, over ONNX Runtime's CPU provider: an "engine" is the ONNX graph itself.

Names, order and kinds of the arguments are those of the bindings of TensorRT 10.16 and 11.4 (`tensorrt-cu12-bindings`),
and what must come before what is insisted upon. Addresses are those of a `FakeMemory`; nothing else is ever read.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime

__version__ = "10.16.1"
STREAM = 77
built: list[Builder] = []
"""Builders in the order in which they were made."""


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = 1, 2


class TensorLocation(enum.Enum):
    DEVICE, HOST = 0, 1


class ILogger:
    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self) -> None:
        self.ready = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.ready = True


def nptype(trt_type: np.dtype[Any]) -> type:
    return trt_type.type


class INetworkDefinition:
    def __init__(self) -> None:
        self.model = b""


class ParserError:
    def desc(self) -> str:
        return "In node 0 with name: x and operator: Strange:\nno importer"


class OnnxParser:
    num_errors = 1

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        assert isinstance(network, INetworkDefinition)
        assert logger.ready
        self.network = network

    def parse(self, model: bytes, path: str | None = None) -> bool:
        assert isinstance(model, bytes)
        assert isinstance(path, str)
        loaded = onnx.load_model_from_string(model)
        self.network.model = model
        return all(node.domain in ("", "ai.onnx") for node in loaded.graph.node)

    def get_error(self, index: int) -> ParserError:
        assert index == 0
        return ParserError()


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:  # noqa: A002
        assert all(a <= b <= c for a, b, c in zip(min, opt, max))
        self.shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytearray:
        return bytearray(self.content or b"timings")


class IBuilderConfig:
    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.progress_monitor: Any = None
        self.cache: ITimingCache | None = None

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache.content not in (b"", b"timings"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        assert self.cache is not None
        return self.cache


class Builder:
    def __init__(self, logger: ILogger) -> None:
        assert logger.ready
        self.logger = logger
        self.configs: list[IBuilderConfig] = []
        built.append(self)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        self.configs.append(IBuilderConfig())
        return self.configs[-1]

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytearray | None:
        monitor = config.progress_monitor
        assert monitor.ready
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Tactics", "Building Engine", 1)
        goes_on = monitor.step_complete("Tactics", 0) and monitor.step_complete("Building Engine", 0)
        monitor.phase_finish("Tactics")
        monitor.phase_finish("Building Engine")
        moving = any(d.dim_param for i in _inputs(network.model) for d in i.type.tensor_type.shape.dim)
        if moving and not config.profiles:
            self.logger.log(ILogger.Severity.ERROR, "4: dynamic inputs need a profile\nat length")
            return None
        shapes = json.dumps([profile.shapes for profile in config.profiles]).encode()
        return bytearray(b"plan" + len(shapes).to_bytes(4, "little") + shapes + network.model) if goes_on else None


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        assert logger.ready
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if serialized_engine[:4] != b"plan":
            self.logger.log(ILogger.Severity.ERROR, "6: the engine plan file is not compatible")
            return None
        size = int.from_bytes(serialized_engine[4:8], "little")
        return ICudaEngine(json.loads(serialized_engine[8 : 8 + size]), serialized_engine[8 + size :])


class ICudaEngine:
    def __init__(self, profiles: list[dict[str, Any]], model: bytes) -> None:
        self.profiles = profiles
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.inputs = {info.name: info for info in self.session.get_inputs()}
        self.outputs = {info.name: info for info in self.session.get_outputs()}
        graph = onnx.load_model_from_string(model).graph
        self.dtypes = {
            info.name: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
            for info in (*graph.input, *graph.output)
        }

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    @property
    def num_io_tensors(self) -> int:
        return len(self.dtypes)

    def get_tensor_name(self, index: int) -> str:
        return list(self.dtypes)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> np.dtype[Any]:
        return self.dtypes[name]

    def get_tensor_location(self, name: str) -> TensorLocation:
        assert name in self.dtypes
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile_index][name]]

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        self.profile, self.shapes = profile_index, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile is not None, "shapes are set after the profile, which forgets them"
        assert isinstance(shape, tuple)
        limits = self.engine.profiles[self.profile].get(name) if self.engine.profiles else None
        self.shapes[name] = shape
        return limits is None or all(a <= b <= c for a, b, c in zip(limits[0], shape, limits[2]))

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes: dict[str, int] = {}
        for given, shape in self.shapes.items():
            axes |= {a: s for a, s in zip(self.engine.inputs[given].shape, shape) if isinstance(a, str)}
        return tuple(axes.get(axis, axis) for axis in self.engine.outputs[name].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert isinstance(memory, int)
        self.addresses[name] = memory
        return name in self.engine.dtypes

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        read = {self.addresses[name] for name in self.engine.inputs}
        assert not read & {self.addresses[name] for name in self.engine.outputs}, (
            "an engine does not write where it reads"
        )
        given = {name: self._at(name, self.shapes[name]) for name in self.engine.inputs}
        names = list(self.engine.outputs)
        for name, value in zip(names, self.engine.session.run(names, given)):
            assert value.shape == self.get_tensor_shape(name)
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(value).ctypes.data, value.nbytes)
        return True

    def _at(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = self.engine.dtypes[name]
        raw = ctypes.string_at(self.addresses[name], math.prod(shape) * dtype.itemsize)
        return np.frombuffer(raw, dtype).reshape(shape)


def _inputs(model: bytes) -> list[Any]:
    return list(onnx.load_model_from_string(model).graph.input)
