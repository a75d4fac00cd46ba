"""Stages of a cascade in torch and as exported graphs, in turns: 20 DDIM steps from 64 to 256 pixels; a prior's step.

    python benchmarks/cascade.py [--pixels 256] [--width 96] [--levels 4] [--layers 4] [--runs 3] [--threads 2]
                                 [--devices cpu openvino:CPU] [--json FILE]

Random weights. The second stage is built as DeepFloyd IF's, with `--width` channels on the finest of its levels. Torch
runs diffusers' `IFSuperResolutionPipeline` with its DDIM scheduler, ours the loop over a bound session, both guided and
from the same noise. Beside the time per step: what the process's heap (glibc's `mallinfo2`) gains from the end of the
first step to the end of the last.

The prior has Karlo's width and `--layers` of its 20 layers; torch runs diffusers' `PriorTransformer` on all 81 tokens,
ours the three that change over the steps.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from vlrt.diffusion import Generator, Loop, SampleOptions, Schedule
from vlrt.diffusion.sample import Hooks, StepBuffers
from vlrt.diffusion.schedule import add_noise
from vlrt.diffusion_sections import ScheduleSpec, ThresholdSpec
from vlrt.engines import Array, EngineOptions, Session
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.engines.openvino import OpenVinoSession
from vlrt.errors import VlrtError
from vlrt_export.bundle_writer import write_graph
from vlrt_export.graph import Graph
from vlrt_export.modules.diffusion_unet import CLASS
from vlrt_export.modules.prior import Prior, PriorPrompt, PriorSizes, PriorStep
from vlrt_export.prior_layout import prior_layout
from vlrt_export.unclip_graphs import prior_graphs, prior_memory
from vlrt_export.unet_graphs import Condition, UNetGraphs
from vlrt_export.weight_layout import build

_STEPS, _GUIDANCE, _NOISE_LEVEL, _STATES = 20, 4.0, 250, (77, 256)
_PAUSE = 0.2
"""Seconds before each run: the other side's idle threads spin for a while after theirs and would take a core."""

_LOW = "low_resolution"
_SCHEDULE = ScheduleSpec("squared_cosine", threshold=ThresholdSpec(0.95, 1.5))


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--devices", nargs="+", default=["cpu", "openvino:CPU"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    threads = EngineOptions(threads=options.threads).thread_count
    torch.set_num_threads(threads)
    report: dict[str, Any] = {"threads": threads, "load_average": os.getloadavg()}
    with tempfile.TemporaryDirectory() as name:
        report["second_stage"] = _second_stage(options, Path(name), threads)
        report["prior"] = _prior(options, Path(name), threads)
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def _open(graph: Graph, folder: Path, device: str, threads: int) -> Session:
    spec = write_graph(graph, folder)
    options = EngineOptions(device, threads)
    kind = OpenVinoSession if device.startswith("openvino") else OnnxRuntimeSession
    return kind(spec, folder / spec.file, options)


# --- the second stage


def _unet(width: int, levels: int, pixels: int) -> Any:
    """The prompt is read in the coarser half of the levels."""
    torch.manual_seed(0)
    fine = levels // 2
    made = diffusers.UNet2DConditionModel(
        sample_size=pixels,
        in_channels=6,
        out_channels=6,
        block_out_channels=tuple(width * (level + 1) for level in range(levels)),
        layers_per_block=2,
        down_block_types=("ResnetDownsampleBlock2D",) * fine + ("SimpleCrossAttnDownBlock2D",) * (levels - fine),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D",) * (levels - fine) + ("ResnetUpsampleBlock2D",) * fine,
        cross_attention_dim=_STATES[1],
        attention_head_dim=32,
        class_embed_type="timestep",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    return made.eval().requires_grad_(False)


def _second_stage(options: argparse.Namespace, folder: Path, threads: int) -> dict[str, Any]:
    unet, pixels = _unet(options.width, options.levels, options.pixels), options.pixels
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(1, 3, pixels // 4, pixels // 4, generator=generator).clamp(-1, 1)
    states = torch.randn(2, *_STATES, generator=generator)
    sides: dict[str, Callable[[Callable[[], None]], Array]] = {"torch": _torch_side(unet, small, states)}
    conditions = {_LOW: Condition((3,)), CLASS: Condition(below=1000)}
    graphs = {graph.role: graph for graph in UNetGraphs(unet, 3, conditions, prompt=_STATES[1]).graphs()}
    memory = _open(graphs["prompt_projection"], folder, "cpu", threads).run(prompt_states=states.numpy())
    for device in options.devices:
        session = _open(graphs["denoiser"], folder, device, threads)
        sides[device] = _our_side(session, small, memory)
    return {"pixels": pixels, "parameters": sum(p.numel() for p in unet.parameters()), **_measure(sides, options.runs)}


def _torch_side(unet: Any, small: torch.Tensor, states: torch.Tensor) -> Callable[[Callable[[], None]], Array]:
    thresholds = {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5}
    config = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "variance_type": "fixed_small"}
    scheduler = diffusers.DDIMScheduler.from_config(config | thresholds)
    parts = dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker"))
    noise = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    pipe = diffusers.IFSuperResolutionPipeline(
        **parts, unet=unet, scheduler=scheduler, image_noising_scheduler=noise, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)

    def run(on_step: Callable[[], None]) -> Array:
        found = pipe(
            image=small,
            prompt_embeds=states[1:],
            negative_prompt_embeds=states[:1],
            num_inference_steps=_STEPS,
            guidance_scale=_GUIDANCE,
            noise_level=_NOISE_LEVEL,
            generator=torch.Generator().manual_seed(1),
            callback=lambda *_: on_step(),
            output_type="pt",
        )
        return np.asarray(found.images.numpy())

    return run


def _our_side(session: Session, small: torch.Tensor, memory: dict[str, Array]) -> Callable[[Callable[[], None]], Array]:
    pixels = 4 * small.shape[2]
    loop = Loop(1, (3, pixels, pixels), 6)
    schedule = Schedule(_SCHEDULE, "ddim", _STEPS)
    aligned = torch.nn.functional.interpolate(small, (pixels, pixels), mode="bilinear", align_corners=True).numpy()
    low, level = np.zeros((2, 3, pixels, pixels), np.float32), np.full(2, _NOISE_LEVEL, np.int64)
    bound: list[Callable[[], None]] = []

    def denoise(buffers: StepBuffers, _: int) -> None:
        if not bound:
            given = {"sample": buffers.sample, "timestep": buffers.real_timestep, _LOW: low, CLASS: level, **memory}
            bound.append(session.bind(given, {"prediction": buffers.prediction}))
        bound[0]()

    def run(on_step: Callable[[], None]) -> Array:
        generator = Generator(1)
        noise = generator.randn((1, 3, pixels, pixels))
        low[...] = add_noise(_SCHEDULE, aligned, generator.randn(aligned.shape), _NOISE_LEVEL)
        options, hooks = SampleOptions(guidance=_GUIDANCE), Hooks(on_step=lambda _: on_step())
        found = loop.run(denoise, schedule, noise, options, generators=[generator], hooks=hooks)
        if found is None:
            raise ValueError("the loop was stopped")
        return found

    return run


def _measure(sides: dict[str, Callable[[Callable[[], None]], Array]], runs: int) -> dict[str, Any]:
    """Time per step, growth of memory from the first step to the last, and how far the pictures are apart."""
    results: dict[str, Array] = {}
    steps: dict[str, list[float]] = {side: [] for side in sides}
    growth: dict[str, list[int]] = {side: [] for side in sides}
    for turn in range(runs + 1):  # the first one warms up
        for side, run in sides.items():
            time.sleep(_PAUSE)
            noted = _Steps()
            results[side] = run(noted)
            if turn:
                steps[side] += np.diff(noted.ends).tolist()
                growth[side].append(int(noted.heaps[-1] - noted.heaps[0]))
    error = {side: _psnr(found, results["torch"]) for side, found in results.items() if side != "torch"}
    return {"step_seconds": steps, "heap_growth_bytes": growth, "psnr_db": error}


class _Steps:
    """Notes when each step ended, and the heap then, without allocating."""

    def __init__(self) -> None:
        self.ends, self.heaps, self.count = np.zeros(_STEPS), np.zeros(_STEPS, np.int64), 0

    def __call__(self) -> None:
        self.ends[self.count], self.heaps[self.count] = time.perf_counter(), _heap()
        self.count += 1


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                "fsmblks", "uordblks", "fordblks", "keepcost")]  # fmt: skip


_LIBRARY = ctypes.CDLL(None)
_LIBRARY.mallinfo2.restype = _Mallinfo


def _heap() -> int:
    """Bytes that the process has allocated, in the heap and as mappings of their own."""
    found = _LIBRARY.mallinfo2()
    return int(found.uordblks + found.hblkhd)


def _psnr(found: Array, expected: Array) -> float:
    """Of pictures in −1 to 1."""
    gap = np.clip(found, -1, 1) - np.clip(expected, -1, 1)
    return float(10 * np.log10(4 / max(float(np.mean(gap**2)), 1e-12)))


# --- the prior


def _prior(options: argparse.Namespace, folder: Path, threads: int) -> dict[str, Any]:
    sizes = PriorSizes(768, 77, options.layers, 32, 64)
    torch.manual_seed(0)
    whole = diffusers.PriorTransformer(num_layers=options.layers).eval().requires_grad_(False)
    prior = build(lambda: Prior(sizes), prior_layout(sizes), whole.state_dict(), "the prior")
    states, embedding, sample = torch.randn(2, 77, 768), torch.randn(2, 768), torch.randn(2, 768)
    mask = torch.ones(2, 77, dtype=torch.int64)
    times: dict[str, list[float]] = {"torch": [], **{device: [] for device in options.devices}}
    with torch.no_grad():
        memory = [part.numpy() for part in PriorPrompt(prior)(states, embedding, mask)]
        expected = whole(sample, 500, embedding, states, mask.bool()).predicted_image_embedding.numpy()
    graph = next(graph for graph in prior_graphs(prior, 1e-3) if isinstance(graph.module, PriorStep))
    given = {"sample": sample.numpy(), "timestep": np.full(2, 500, np.float32)}
    given |= dict(zip(prior_memory(options.layers), map(np.ascontiguousarray, memory)))
    results = {device: np.zeros_like(expected) for device in options.devices}
    runs = {
        device: _open(graph, folder, device, threads).bind(given, {"prediction": found})
        for device, found in results.items()
    }

    def eager() -> None:
        with torch.no_grad():
            whole(sample, 500, embedding, states, mask.bool())

    for turn in range(3 * options.runs + 1):
        for side, run in {"torch": eager, **runs}.items():
            time.sleep(_PAUSE)
            started = time.perf_counter()
            run()
            if turn:
                times[side].append(time.perf_counter() - started)
    error = {device: float(np.abs(found - expected).max()) for device, found in results.items()}
    return {"layers": options.layers, "step_seconds": times, "largest_error": error}


def _print(report: dict[str, Any]) -> None:
    second, prior = report["second_stage"], report["prior"]
    print(f"{second['pixels']}² pixels, {second['parameters'] / 1e6:.0f} M parameters, {_STEPS} DDIM steps, guided:")
    _print_sides(second["step_seconds"])
    for side, grown in second["heap_growth_bytes"].items():
        print(f"  {side}: heap after the last step beyond the first: {max(grown):,} bytes at most")
    for side, value in second["psnr_db"].items():
        print(f"  {side}: {value:.1f} dB from torch's picture")
    print(f"the prior, {prior['layers']} layers of Karlo's width, two rows:")
    _print_sides(prior["step_seconds"])


def _print_sides(times: dict[str, list[float]]) -> None:
    middle = {side: statistics.median(found) for side, found in times.items()}
    for side, found in times.items():
        low, high = np.quantile(found, (0.25, 0.75))
        print(
            f"  {side}: {middle[side]:.4f} s a step ({low:.4f} to {high:.4f}), {middle['torch'] / middle[side]:.2f} x"
        )


if __name__ == "__main__":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            main()
    except VlrtError as error:
        sys.exit(f"error: {error}")
