"""A bundle's graph as an OpenVINO model: read, compared with the manifest, and cut where bf16 would be too coarse."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vlrt.errors import BundleError, EngineError
from vlrt.manifest import GraphSpec
from vlrt.onnx_signature import signature

_READS_CACHES_OTHERWISE = "GroupQueryAttention"
"""OpenVINO takes it, but attends over the whole buffer of a cache, filled or not."""
_BAD_GRAPH = "copy the bundle again, or export it again"
_LEFT_OUT = re.compile(r"No conversion rule found for operations:\s*(.+)")
_LOCATION = re.compile(r"^(Exception from |Check '|FrontEnd API failed|\[ ?[A-Z]+ ?\] *$)")
_WAVES = ("Sin", "Cos")


def read_model(core: Any, path: Path) -> Any:
    """The model in a file; not by the front end's own Python class, which reports to its makers as well."""
    signature(path)  # on a file that is no ONNX graph OpenVINO tries its other readers, loudly
    try:
        model = core.read_model(path)
    except Exception as error:  # noqa: BLE001 - see above
        left_out = _LEFT_OUT.search(str(error))
        if left_out:
            raise _refused(path, left_out[1].removeprefix("com.microsoft.")) from None
        raise BundleError(f"`{path.name}` cannot be loaded by openvino: {reason(error)}", _BAD_GRAPH) from None
    if any(node.get_type_name() == _READS_CACHES_OTHERWISE for node in model.get_ops()):
        raise _refused(path, _READS_CACHES_OTHERWISE)
    return model


def _refused(path: Path, operator: str) -> EngineError:
    what = f"`{path.name}` has the operator `{operator}`, which is ONNX Runtime's own; OpenVINO cannot run it"
    return EngineError(what, "use `--device cpu` for this bundle")


def check_signature(model: Any, spec: GraphSpec) -> None:
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


@dataclass(frozen=True)
class Cut:
    """A model in two parts.

    Args:
        body: all of it but the head.
        head: what computes sines and cosines; `None` where that is not cut off.
        inputs: names of the head's inputs; the body has them too.
        waves: names of the head's outputs in order, which are further inputs of the body.
    """

    body: Any
    head: Any = None
    inputs: tuple[str, ...] = ()
    waves: tuple[str, ...] = ()


def cut(library: ModuleType, core: Any, path: Path, body: Any) -> Cut:
    """Cuts off what computes sines and cosines, of times and places, to be computed in fp32.

    In bf16, a number of eight bits, the timestep 999 would be 1000 and its embedding another one's.

    Args:
        body: the model in `path`; it is changed.
    """
    from openvino import op

    found = _waves(body)
    if not found:
        return Cut(body)
    whole = core.read_model(path)
    results = [op.Result(node.output(0)) for node in _waves(whole)]
    needed = _parameters(results)
    head = library.Model(results, needed, "waves")
    waves = []
    for number, node in enumerate(found):
        given = op.Parameter(library.Type.f32, node.get_output_partial_shape(0))
        waves.append(f"vlrt.wave.{number}")
        given.output(0).get_tensor().set_names({waves[-1]})
        for target in list(node.output(0).get_target_inputs()):
            target.replace_source_output(given.output(0))
        body.add_parameters([given])
    names = tuple(next(iter(parameter.output(0).get_names())) for parameter in needed)
    return Cut(body, head, names, tuple(waves))


def _waves(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() in _WAVES]


def _parameters(results: list[Any]) -> list[Any]:
    """The inputs that results depend on."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    left = list(results)
    while left:
        node = left.pop()
        if node.get_name() in seen:
            continue
        seen.add(node.get_name())
        if node.get_type_name() == "Parameter":
            found[node.get_name()] = node
        left += [part.get_source_output().get_node() for part in node.inputs()]
    return list(found.values())


def reason(error: Exception) -> str:
    """The line that says what happened; before it come the places in OpenVINO's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not _LOCATION.match(line)]
    return (telling or lines or [type(error).__name__])[0][:300]
