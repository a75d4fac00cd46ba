"""What torch does anew for every graph that it traces, done once in a test process: it takes a second of each."""

from __future__ import annotations

import copy
import functools
from typing import Any


def quicken() -> None:
    """Keeps torch's table of ONNX functions, for which the source of five hundred is parsed, and its list of operators.

    Tests register neither. Where another torch has other names inside, tracing only stays as slow as it was.
    """
    from torch._export import utils
    from torch.onnx._internal.exporter import _registration

    registry: Any = _registration.ONNXRegistry
    if hasattr(registry, "from_torchlib") and hasattr(registry(), "functions"):
        make = functools.cache(registry.from_torchlib.__func__)

        def once(cls: Any, *given: Any, **named: Any) -> Any:
            fresh = copy.copy(make(cls, *given, **named))
            fresh.functions = {target: list(found) for target, found in fresh.functions.items()}
            return fresh

        registry.from_torchlib = classmethod(once)
    if hasattr(utils, "_materialize_cpp_cia_ops"):
        utils._materialize_cpp_cia_ops = functools.cache(utils._materialize_cpp_cia_ops)
