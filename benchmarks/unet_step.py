"""One guided step of a UNet of Stable Diffusion 1.5's shape: torch eager beside the exported graph, in turns.

    python benchmarks/unet_step.py [--latents 64] [--runs 5] [--threads 2] [--sides cpu openvino:CPU] [--json FILE]

Sides, beside torch in fp32: `torch:bf16`; devices (`cpu`, `openvino:CPU`, `openvino:CPU:fp32`); and `onnxruntime`,
which is `cpu` without vlrt's own kernels. Each holds weights of its own: where memory is short, name a few at a time.

Random weights; both sides do the same arithmetic on two rows (unconditional and conditional). Torch runs diffusers' own
`UNet2DConditionModel` with its default attention; it projects the prompt in every step, as its pipelines do. With
`--width 64` it is a small one, to try the script. `--graphs FOLDER` keeps the graphs, and uses those it finds there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import onnxruntime
import torch

from vlrt import record
from vlrt.engines import EngineOptions
from vlrt.engines.prepared import open_file
from vlrt.engines.session import Session
from vlrt.errors import VlrtError
from vlrt.manifest import GraphSpec
from vlrt_export.bundle_writer import write_graph
from vlrt_export.unet_graphs import STATES, UNetGraphs

_PAUSE = 0.2
"""Seconds before each run: the other side's idle threads spin for a while after theirs and would take a core."""

_PROMPT = (77, 768)
_PLAIN, _REDUCED = "onnxruntime", "torch:bf16"
"""Sides that are no devices: onnxruntime with its own kernels, and torch with weights and inputs in bf16."""


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[64])
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--sides", nargs="+", default=["cpu"])
    parser.add_argument("--graphs", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads = EngineOptions(threads=options.threads).thread_count
    torch.set_num_threads(threads)
    unet = _unet(options.width)
    with tempfile.TemporaryDirectory() as name:
        graphs = _graphs(unet, options.graphs or Path(name))
        rows = []
        for latents in options.latents:
            rows.append(_measure(unet, graphs, latents, options.sides, threads, options.runs))
            _print(rows[-1], options.sides)
    versions = {m.__name__: m.__version__ for m in (torch, diffusers, onnxruntime)}
    report = {"threads": threads, "versions": versions, "load_average": os.getloadavg(), "steps": rows}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def _unet(width: int) -> Any:
    torch.manual_seed(0)
    channels = tuple(width * factor for factor in (1, 2, 4, 4))
    made = diffusers.UNet2DConditionModel(sample_size=64, block_out_channels=channels, cross_attention_dim=_PROMPT[1])
    return made.eval().requires_grad_(False)


def _graphs(unet: Any, folder: Path) -> dict[str, tuple[GraphSpec, Path]]:
    """The graphs by role, written to the folder unless they are there."""
    found = {}
    for graph in UNetGraphs(unet, 4, prompt=_PROMPT[1]).graphs():
        kept = folder / f"{graph.role}.json"
        if not kept.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(record.write(write_graph(graph, folder))), "utf-8")
        spec = record.read(GraphSpec, json.loads(kept.read_text("utf-8")), kept.name)
        found[graph.role] = (spec, folder / spec.file)
    return found


def _open(spec: GraphSpec, path: Path, device: str, threads: int) -> Session:
    if device == _PLAIN:
        with mock.patch.dict(os.environ, {"VLRT_KERNELS": "0"}):
            return open_file(spec, path, EngineOptions("cpu", threads))
    options = EngineOptions(device, threads)
    if device.startswith("openvino"):
        from vlrt.engines.openvino import OpenVinoSession

        return OpenVinoSession(spec, path, options)
    return open_file(spec, path, options)


def _eager(unet: Any, inputs: Sequence[torch.Tensor], found: dict[str, Any], side: str) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            found[side] = unet(*inputs).sample.float().numpy()

    return run


def _sides(
    unet: Any, graphs: dict[str, tuple[GraphSpec, Path]], latents: int, names: Sequence[str], threads: int
) -> tuple[dict[str, Callable[[], None]], dict[str, Any]]:
    """What runs a step on each side, and where its predictions will be."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, latents, latents, generator=generator)
    states = torch.randn(2, *_PROMPT, generator=generator)
    given = (sample, torch.full((2,), 500.0), states)
    results: dict[str, Any] = {}
    sides = {"torch": _eager(unet, given, results, "torch")}
    memory = _open(*graphs["prompt_projection"], "cpu", threads).run(**{STATES: states.numpy()})
    inputs = {"sample": sample.numpy(), "timestep": given[1].numpy(), **memory}
    for name in names:
        if name == _REDUCED:
            reduced = copy.deepcopy(unet).to(torch.bfloat16)
            sides[name] = _eager(reduced, [tensor.to(torch.bfloat16) for tensor in given], results, name)
        else:
            results[name] = np.zeros(tuple(sample.shape), np.float32)
            session = _open(*graphs["denoiser"], name, threads)
            sides[name] = session.bind(inputs, {"prediction": results[name]})
    return sides, results


def _measure(
    unet: Any, graphs: dict[str, tuple[GraphSpec, Path]], latents: int, names: Sequence[str], threads: int, runs: int
) -> dict[str, Any]:
    sides, results = _sides(unet, graphs, latents, names, threads)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(runs + 1):  # the first one warms up
        for side, run in sides.items():
            time.sleep(_PAUSE)
            started = time.perf_counter()
            run()
            if turn:
                times[side].append(time.perf_counter() - started)
    scale = float(np.abs(results["torch"]).max())
    error = {name: float(np.abs(results[name] - results["torch"]).max()) / scale for name in names}
    seconds = {side: [round(value, 4) for value in found] for side, found in times.items()}
    return {"latents": latents, "seconds": seconds, "largest_relative_error": error}


def _print(row: dict[str, Any], names: Sequence[str]) -> None:
    medians = {side: statistics.median(found) for side, found in row["seconds"].items()}
    print(f"latents {row['latents']}²: torch eager {_spread(row['seconds']['torch'])}")
    for name in names:
        ratio, error = medians["torch"] / medians[name], row["largest_relative_error"][name]
        print(f"  {name}: {_spread(row['seconds'][name])}, {ratio:.2f} x, error {error:.1e} of the largest value")


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"


if __name__ == "__main__":
    try:
        main()
    except VlrtError as error:
        sys.exit(f"error: {error}")
