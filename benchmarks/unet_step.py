"""One guided step of a UNet of Stable Diffusion 1.5's shape: torch eager beside the exported graph, in turns.

    python benchmarks/unet_step.py [--latents 64] [--runs 5] [--threads 2] [--devices cpu openvino:CPU] [--json FILE]

Random weights; both sides do the same arithmetic on two rows (unconditional and conditional). Torch runs diffusers' own
`UNet2DConditionModel` with its default attention; it projects the prompt in every step, as its pipelines do. With
`--width 64` it is a small one, to try the script. `--graphs FOLDER` keeps the graphs, and uses those it finds there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[64])
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--devices", nargs="+", default=["cpu"])
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
            rows.append(_measure(unet, graphs, latents, options.devices, threads, options.runs))
            _print(rows[-1], options.devices)
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
    options = EngineOptions(device, threads)
    if device.startswith("openvino"):
        from vlrt.engines.openvino import OpenVinoSession

        return OpenVinoSession(spec, path, options)
    return open_file(spec, path, options)


def _measure(
    unet: Any, graphs: dict[str, tuple[GraphSpec, Path]], latents: int, devices: Sequence[str], threads: int, runs: int
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, latents, latents, generator=generator)
    states = torch.randn(2, *_PROMPT, generator=generator)
    timestep = torch.full((2,), 500.0)
    sides: dict[str, Callable[[], Any]] = {}
    results: dict[str, Any] = {}

    def eager() -> None:
        with torch.no_grad():
            results["torch"] = unet(sample, timestep, states).sample.numpy()

    sides["torch"] = eager
    memory = _open(*graphs["prompt_projection"], "cpu", threads).run(**{STATES: states.numpy()})
    for device in devices:
        results[device] = np.zeros(tuple(sample.shape), np.float32)
        inputs = {"sample": sample.numpy(), "timestep": timestep.numpy(), **memory}
        sides[device] = _open(*graphs["denoiser"], device, threads).bind(inputs, {"prediction": results[device]})
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(runs + 1):  # the first one warms up
        for side, run in sides.items():
            time.sleep(_PAUSE)
            started = time.perf_counter()
            run()
            if turn:
                times[side].append(time.perf_counter() - started)
    scale = float(np.abs(results["torch"]).max())
    error = {device: float(np.abs(results[device] - results["torch"]).max()) / scale for device in devices}
    seconds = {side: [round(value, 4) for value in found] for side, found in times.items()}
    return {"latents": latents, "seconds": seconds, "largest_relative_error": error}


def _print(row: dict[str, Any], devices: Sequence[str]) -> None:
    medians = {side: statistics.median(found) for side, found in row["seconds"].items()}
    print(f"latents {row['latents']}²: torch eager {_spread(row['seconds']['torch'])}")
    for device in devices:
        ratio, error = medians["torch"] / medians[device], row["largest_relative_error"][device]
        print(f"  {device}: {_spread(row['seconds'][device])}, {ratio:.2f} x, error {error:.1e} of the largest value")


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})"


if __name__ == "__main__":
    try:
        main()
    except VlrtError as error:
        sys.exit(f"error: {error}")
