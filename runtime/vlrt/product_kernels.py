"""Whose kernels run the products of loaded graphs: onnxruntime's own, or ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vlrt.device_graph.model import Model
from vlrt.device_graph.rewrite import count
from vlrt.engines import Session, custom_kernels
from vlrt.engines.onnxruntime import OnnxRuntimeSession

OURS = ("Linear", "LinearInt8")
"""Operators that are a product with weights, of `custom_kernels.DOMAIN`."""

PRODUCTS = (
    *("MatMul", "Gemm", "FusedMatMul", "FusedGemm"),
    *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "MatMulNBits"),
)
"""Operators that are a product, of the standard's domain or onnxruntime's."""


def describe_kernels(sessions: Iterable[Session]) -> str:
    """For people: ``vlrt AVX-512 VNNI, 73 of 75 products``; nothing where another engine runs all of the graphs.

    Raises:
        OSError: a graph's file is not there any more.
    """
    ours, others = Counter[str](), Counter[str]()
    for session in sessions:
        if not isinstance(session, OnnxRuntimeSession) or session.device != "cpu":
            continue
        try:
            found = count(Model(session.path))
        except ValueError:  # what only onnxruntime understands it runs itself, and nobody can say how
            return "onnxruntime's own"
        ours.update(found.ours)
        others.update({kind.rpartition(".")[2]: times for kind, times in found.others.items()})
    made, left = sum(ours[name] for name in OURS), sum(others[name] for name in PRODUCTS)
    if made:
        return f"vlrt {custom_kernels.level_name()}, {made} of {made + left} products"
    return f"onnxruntime's own, {left} products" if left else ""
