"""Bundles for NVIDIA's GPUs: products and caches in fp16, made of a bundle that was proven in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from vlrt.bundle import Bundle
from vlrt.manifest import GraphSpec, Manifest, TensorSpec
from vlrt.onnx_signature import signature
from vlrt.verify import verify
from vlrt_export.bundle_writer import derive_bundle
from vlrt_export.half_products import compute_products_in_halves
from vlrt_export.parity import admit

Progress = Callable[[str], None]

_LIMITS = {"max error / std": 0.05, "max score error": 0.05}
"""By metric, on what the bundle gives in fp16 against the goldens that torch gave in fp32."""


def write_cuda_bundle(
    source: Bundle, target: Path, *, force: bool = False, progress: Progress = lambda line: None
) -> Manifest:
    """Writes the bundle in mixed precision and holds it against the source's goldens, on the CPU.

    Nothing is said of its speed: that is the GPU's, which need not be at hand.

    Raises:
        VlrtError: the source is not a bundle of ours in fp32, the target exists, or the results are too far off.
    """

    def change(folder: Path, described: Manifest) -> Manifest:
        graphs = {}
        for role, spec in described.graphs.items():
            progress(f"writing {role} for CUDA")
            graphs[role] = _halve(folder, spec)
        return replace(described, graphs=graphs)

    def prove(bundle: Bundle) -> Manifest:
        progress("proving what it gives, on the CPU")
        lines = [
            replace(line, stage=f"fp16 for CUDA, {line.stage}", limit=min(line.limit, _LIMITS.get(line.metric, 1e9)))
            for line in verify(bundle)
        ]
        admit(lines)
        proven = [replace(line, stage=f"fp32, {line.stage}") for line in source.manifest.certificate]
        return replace(bundle.manifest, certificate=(*proven, *lines))

    return derive_bundle(source, target, change, prove, force=force)


def _halve(folder: Path, spec: GraphSpec) -> GraphSpec:
    path = folder / spec.file
    model = onnx.load_model(path)
    compute_products_in_halves(model)
    for name in spec.external:
        (folder / name).unlink()
    large = bool(spec.external)
    beside = f"{path.stem}.bin"
    onnx.save_model(model, path, save_as_external_data=large, location=beside, size_threshold=1024)
    kinds = {tensor.name: tensor.dtype for side in signature(path) for tensor in side}
    return replace(
        spec,
        precision="fp16",
        storage="",
        external=(beside,) if large else (),
        inputs=tuple(_typed(tensor, kinds) for tensor in spec.inputs),
        outputs=tuple(_typed(tensor, kinds) for tensor in spec.outputs),
    )


def _typed(tensor: TensorSpec, kinds: dict[str, str]) -> TensorSpec:
    return replace(tensor, dtype=kinds[tensor.name])
