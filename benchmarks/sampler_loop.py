"""What a sampling step costs beside the model: our loop with a denoiser that does nothing, and diffusers' schedulers.

    python benchmarks/sampler_loop.py [--step-ms 1000] [--json FILE]

Sides alternate in one run; medians over rounds, with the quartiles. diffusers' side is what its pipelines do around the
UNet: the duplicated and scaled input, guidance, and the scheduler's step. `--step-ms` is the time of a model's step on
the same machine (`benchmarks/unet_step.py` measures one), of which the share is shown.

The last lines show the heap (glibc's `mallinfo2`) over 20 DDIM steps of a 256² pixel stage: what is in use at the last
call of the denoiser beyond the first. `tests/native/test_denoise.cc` counts every single allocation, of every rule.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from vlrt.diffusion import Generator, Loop, SampleOptions, Schedule
from vlrt.diffusion_sections import ScheduleSpec, ThresholdSpec

_ROUNDS = 15
_STEPS = 20
_LATENTS = (4, 64, 64)
_PIXELS = (3, 256, 256)

_SCALED: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
_CASES: dict[str, tuple[tuple[int, ...], int, str, ScheduleSpec, str, dict[str, Any]]] = {
    "latents 64², ddim": (
        *(_LATENTS, 4, "ddim", ScheduleSpec("scaled_linear", **_SCALED)),
        *("DDIMScheduler", {"beta_schedule": "scaled_linear", "clip_sample": False, **_SCALED}),
    ),
    "latents 64², pndm": (
        *(_LATENTS, 4, "pndm", ScheduleSpec("scaled_linear", **_SCALED)),
        *("PNDMScheduler", {"beta_schedule": "scaled_linear", "skip_prk_steps": True, **_SCALED}),
    ),
    "latents 64², euler-ancestral": (
        *(_LATENTS, 4, "euler-ancestral", ScheduleSpec("scaled_linear", **_SCALED)),
        *("EulerAncestralDiscreteScheduler", {"beta_schedule": "scaled_linear", **_SCALED}),
    ),
    "pixels 256², ddim": (
        *(_PIXELS, 3, "ddim", ScheduleSpec(clip_sample=1.0)),
        *("DDIMScheduler", {"clip_sample": True}),
    ),
    "pixels 256², ddpm, learned range": (
        *(_PIXELS, 6, "ddpm", ScheduleSpec("squared_cosine", variance="learned_range", clip_sample=1.0)),
        *("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}),
    ),
    "pixels 256², ddpm, dynamic threshold": (
        *(_PIXELS, 6, "ddpm"),
        ScheduleSpec("squared_cosine", variance="learned_range", threshold=ThresholdSpec(0.95, 1.5)),
        "DDPMScheduler",
        {
            "beta_schedule": "squaredcos_cap_v2",
            "variance_type": "learned_range",
            "thresholding": True,
            "dynamic_thresholding_ratio": 0.95,
            "sample_max_value": 1.5,
        },
    ),
}


def ours(shape: tuple[int, ...], channels: int, rule: str, spec: ScheduleSpec) -> Callable[[], int]:
    """One guided run; returns the number of evaluations."""
    schedule, loop = Schedule(spec, rule, _STEPS), Loop(1, shape, channels)
    loop.buffers("both").prediction[...] = 0.1 * Generator(1).randn((2, channels, *shape[1:]))
    x, options, generator = Generator(0).randn((1, *shape)), SampleOptions(7.5), Generator(2)

    def run() -> int:
        loop.run(lambda buffers, index: None, schedule, x, options, generators=[generator])
        return len(schedule.evaluations)

    return run


def theirs(shape: tuple[int, ...], channels: int, name: str, config: dict[str, Any]) -> Callable[[], int]:
    """The same work as diffusers' pipelines do it."""
    predicted = torch.from_numpy(0.1 * Generator(1).randn((2, channels, *shape[1:])))
    start, generator = torch.from_numpy(Generator(0).randn((1, *shape))), torch.Generator().manual_seed(2)
    more = {"generator": generator} if name not in ("PNDMScheduler", "DDIMScheduler") else {}

    def run() -> int:
        scheduler = getattr(diffusers, name)(**config)
        scheduler.set_timesteps(_STEPS)
        x = start
        for t in scheduler.timesteps:
            scheduler.scale_model_input(torch.cat([x] * 2), t)
            unconditional, conditional = predicted.chunk(2)
            mean, base = conditional[:, : shape[0]], unconditional[:, : shape[0]]
            guided = base + 7.5 * (mean - base)
            if channels != shape[0]:
                guided = torch.cat([guided, conditional[:, shape[0] :]], dim=1)
            x = scheduler.step(guided, t, x, **more).prev_sample
        return len(scheduler.timesteps)

    return run


def step_microseconds(run: Callable[[], int]) -> float:
    started = time.perf_counter()
    evaluations = run()
    return (time.perf_counter() - started) / evaluations * 1e6


def measure(rounds: int) -> list[dict[str, Any]]:
    results = []
    for name, (shape, channels, rule, spec, scheduler, config) in _CASES.items():
        sides = {"vlrt": ours(shape, channels, rule, spec), "diffusers": theirs(shape, channels, scheduler, config)}
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds + 2):
            for side, run in sides.items():
                times[side].append(step_microseconds(run))
        quartiles = {side: np.percentile(found[2:], [25, 50, 75]).tolist() for side, found in times.items()}
        results.append({"case": name, "evaluations": _STEPS, "microseconds": quartiles})
    return results


def show(results: list[dict[str, Any]], step_ms: float | None) -> None:
    for found in results:
        (low, ours_us, high), (_, theirs_us, _) = found["microseconds"]["vlrt"], found["microseconds"]["diffusers"]
        share = f", {ours_us / step_ms / 10:.3f} % of a step of {step_ms:g} ms" if step_ms else ""
        print(
            f"{found['case']:38} {ours_us:7.0f} µs a step ({low:.0f} to {high:.0f}), diffusers {theirs_us:7.0f} µs, "
            f"{theirs_us / ours_us:.1f}x{share}"
        )


class _HeapInfo(ctypes.Structure):
    """Glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


def heap_growth() -> int:
    """Bytes in use at the last call of the denoiser beyond those at the second, over 20 DDIM steps."""
    info = ctypes.CDLL(None).mallinfo2
    info.restype = _HeapInfo
    used: list[int] = [0] * _STEPS

    def look(buffers: object, index: int) -> None:
        found = info()
        used[index] = found.uordblks + found.hblkhd

    schedule, loop = Schedule(ScheduleSpec(clip_sample=1.0), "ddim", _STEPS), Loop(1, _PIXELS)
    for _ in range(2):  # the first run makes the views
        loop.run(look, schedule, Generator(0).randn((1, *_PIXELS)), SampleOptions(3.0))
    return max(used[1:]) - used[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-ms", type=float, help="a model's step, for the share")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    results = measure(given.rounds)
    show(results, given.step_ms)
    growth = heap_growth()
    print(f"heap growth over 20 DDIM steps at 256²: {growth} bytes")
    if given.json:
        found = {"threads": given.threads, "steps": results, "heap_growth_bytes": growth}
        given.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
