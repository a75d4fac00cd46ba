"""TensorRT engines from the graphs of a bundle, built on the machine that is to run them.

Needs tensorrt and onnx, not torch: what is built of is the bundle, proven when it was exported.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from vlrt.bundle import Bundle
from vlrt.engines.cuda_driver import gpu
from vlrt.engines.tensorrt import load_library, machine, make_log, reason, start
from vlrt.engines.tensorrt_store import AxisRange, EngineStore, Machine, Profile, timing_file
from vlrt.errors import EngineError, UsageError, VlrtError
from vlrt.manifest import GraphSpec
from vlrt.onnx_signature import contributed_operators
from vlrt.whole_file import write_whole
from vlrt_export.portable_attention import OPERATOR, make_portable

Progress = Callable[[str], None]

USUAL = {axis: AxisRange(1, 1, 8) for axis in ("batch", "images", "texts")} | {"rows": AxisRange(1, 5, 8)}
"""Ranges of axes that every user has the same idea of; of others the user must say."""


def parse_profile(text: str) -> dict[str, AxisRange]:
    """``rows=1:5:8,height=64``: smallest, usual and largest size of axes, or the only one.

    Raises:
        UsageError: it does not read so.
    """
    found: dict[str, AxisRange] = {}
    for part in text.split(","):
        axis, _, sizes = part.strip().partition("=")
        numbers = sizes.split(":")
        if not axis or len(numbers) not in (1, 3) or not all(n.isdecimal() for n in numbers):
            raise UsageError(f"`--profile {text}` does not read as ranges", "--profile rows=1:5:8,height=64,width=64")
        smallest, usual, largest = map(int, numbers if len(numbers) == 3 else numbers * 3)
        found[axis] = AxisRange(smallest, usual, largest)
    return found


@dataclass(frozen=True)
class Wish:
    """What engines are to be built.

    Args:
        profiles: ranges of axes; one optimisation profile each. Axes that are not named have those of `USUAL`.
        device: number of the GPU.
        progress: told each stage in a few words.
    """

    profiles: Sequence[Profile] = ({},)
    device: int = 0
    progress: Progress = field(default=lambda line: None)

    def ranges(self, graphs: Mapping[str, GraphSpec]) -> dict[str, list[dict[str, AxisRange]]]:
        """By role and profile, of every axis of the graph's inputs.

        Raises:
            UsageError: axes without a range; all of them are named.
        """
        axes = {role: _bases(spec) for role, spec in graphs.items()}
        known = [{**USUAL, **given} for given in self.profiles]
        missing = sorted(set().union(*axes.values()) - set(known[0]).intersection(*known))
        if missing:
            of = {axis: next(graphs[role].file for role in axes if axis in axes[role]) for axis in missing}
            named = ", ".join(f"`{axis}` of `{file}`" for axis, file in of.items())
            example = ",".join(f"{axis}=SMALLEST:USUAL:LARGEST" for axis in missing)
            raise UsageError(f"an engine needs the ranges of axes of any size: {named}", f"--profile {example}")
        return {role: [{axis: ranges[axis] for axis in sorted(axes[role])} for ranges in known] for role in graphs}


def build_engines(bundle: Bundle, wish: Wish) -> list[Path]:
    """Builds an engine of every graph of a bundle and keeps them in the user's cache.

    Returns:
        Where they lie.

    Raises:
        EngineError: no tensorrt, driver or GPU, or a graph that TensorRT cannot build.
        UsageError: an axis without a range.
        KeyboardInterrupt: the user cancelled; the engines that were done by then are kept.
    """
    library = load_library()
    here = machine(library, gpu(wish.device))
    graphs = bundle.manifest.graphs
    ranges = wish.ranges(graphs)
    for role in graphs:
        refuse_unserved(bundle.graph(role)[1])
    kept: list[Path] = []
    for role in graphs:
        spec, path = bundle.graph(role)
        plan = _Build(library, here, spec, wish.progress).build(path, ranges[role])
        kept.append(EngineStore(bundle, role).keep(here, ranges[role], plan))
    return kept


def refuse_unserved(path: Path) -> None:
    """Raises `EngineError` for a graph with operators that are neither ONNX's nor ones that we can write in ONNX."""
    left = sorted(contributed_operators(path) - {OPERATOR})
    if left:
        names = ", ".join(f"`{name}`" for name in left)
        what = f"`{path.name}` has {names}, ONNX Runtime's own; TensorRT cannot read them"
        raise EngineError(what, "build from the bundle in fp32, or use `--device cuda:0`")


class _Build:
    """The build of one engine."""

    def __init__(self, library: ModuleType, here: Machine, spec: GraphSpec, progress: Progress) -> None:
        self._library, self._here, self._spec, self._progress = library, here, spec, progress
        self._log = make_log(library)
        self._builder = start(library, "Builder", self._log)
        # TensorRT 10 must be asked to compute in the types that the graph has; later ones do nothing else.
        flag = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(flag)
        self._parser = library.OnnxParser(self._network, self._log)

    def build(self, path: Path, ranges: Sequence[Mapping[str, AxisRange]]) -> bytes:
        self._progress(f"reading {self._spec.file} with TensorRT {self._here.tensorrt}")
        self._read(path)
        config = self._builder.create_builder_config()
        for profile in ranges:
            self._add_profile(config, profile)
        self._use_timings(config)
        monitor = make_monitor(self._library, self._spec.file, self._progress)
        config.progress_monitor = monitor
        plan = self._run(config, monitor)
        self._keep_timings(config)
        return bytes(memoryview(plan))

    def _read(self, path: Path) -> None:
        model = make_portable(onnx.load_model(path, load_external_data=False))
        # The path tells where weights in files beside the graph are.
        if not self._parser.parse(model.SerializeToString(), str(path)):
            said = [self._parser.get_error(index).desc() for index in range(self._parser.num_errors)]
            why = said[0].strip().splitlines()[0] if said else reason(self._log)
            raise EngineError(
                f"`{path.name}` cannot be read by TensorRT: {why}", "use `--device cuda:0` for this model"
            )

    def _add_profile(self, config: Any, ranges: Mapping[str, AxisRange]) -> None:
        moving = [t for t in self._spec.inputs if any(isinstance(axis, str) for axis in t.shape)]
        if not moving:
            return
        profile = self._builder.create_optimization_profile()
        for tensor in moving:
            sizes = [_sizes(axis, ranges) for axis in tensor.shape]
            profile.set_shape(tensor.name, *(tuple(size[i] for size in sizes) for i in range(3)))
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT refuses the ranges of `{self._spec.file}`: {reason(self._log)}")

    def _use_timings(self, config: Any) -> None:
        known = b""
        with contextlib.suppress(OSError):
            known = timing_file(self._here).read_bytes()
        if not config.set_timing_cache(config.create_timing_cache(known), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def _keep_timings(self, config: Any) -> None:
        target = timing_file(self._here)
        with contextlib.suppress(OSError):  # the next build is only longer
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, bytes(memoryview(config.get_timing_cache().serialize())))

    def _run(self, config: Any, monitor: Any) -> Any:
        """Builds in a thread, for an interrupt reaches Python's main thread only between two of its steps."""
        found: list[Any] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                found.append(self._builder.build_serialized_network(self._network, config))
            except Exception as error:  # noqa: BLE001 - handed to the thread that waits
                failed.append(error)

        thread = threading.Thread(target=work, name="vlrt-tensorrt")
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.2)
        except KeyboardInterrupt:
            monitor.cancelled.set()
            thread.join()
            raise
        if failed or found[0] is None:
            why = failed[0] if failed else reason(self._log)
            raise EngineError(
                f"TensorRT cannot build `{self._spec.file}`: {why}", "use `--device cuda:0` for this model"
            )
        return found[0]


def make_monitor(library: ModuleType, file: str, progress: Progress) -> Any:
    """TensorRT's view of a build's progress: tells of its outermost phases, and ends it once `cancelled` is set."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc, name-defined] # known when the library is
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.cancelled = threading.Event()
            self._outermost: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._outermost[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self._outermost.get(phase_name)
            if steps:
                progress(f"building {file}: {phase_name.lower()}, {min(step + 1, steps)} of {steps}")
            return not self.cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._outermost.pop(phase_name, None)

    return Monitor()


def _parts(axis: str) -> tuple[int, str]:
    """``8*height`` is an axis of 8 times the height."""
    factor, star, base = axis.rpartition("*")
    if not star:
        return 1, axis
    if not factor.isdecimal():
        raise VlrtError(f"the axis `{axis}` has a factor that is not a number", "export the bundle again")
    return int(factor), base


def _bases(spec: GraphSpec) -> set[str]:
    return {_parts(axis)[1] for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}


def _sizes(axis: int | str, ranges: Mapping[str, AxisRange]) -> tuple[int, int, int]:
    if isinstance(axis, int):
        return axis, axis, axis
    factor, base = _parts(axis)
    size = ranges[base]
    return factor * size.smallest, factor * size.usual, factor * size.largest
