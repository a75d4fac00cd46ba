"""Every update rule against diffusers' scheduler of the same configuration, step by step.

Both sides walk with one fixed toy denoiser and one seed. The tolerance is 1e-5 of the sample's own size at each step;
samples of the rules over noise levels start at a deviation of 14 and, with zero terminal signal, of 4096.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_consistency_decoder

from vlrt.diffusion import Generator, Hooks, KnownPicture, SampleOptions, Schedule, StepBuffers, StepDone, sample
from vlrt.diffusion.schedule import add_noise
from vlrt.diffusion_sections import ScheduleSpec, ThresholdSpec

# diffusers 0.39 turns tensors into arrays in a way that NumPy 2 will refuse one day.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHAPE = (2, 3, 8, 8)
SEED = 11


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy(x: torch.Tensor, t: float, channels: int = 3) -> torch.Tensor:
    """A smooth function of sample and timestep, with further channels for learned variances."""
    place = torch.linspace(-1, 1, x.shape[-1])
    mean = torch.tanh(0.6 * x + place) + 0.2 * torch.cos(x.mean() + t / 300)
    return mean if channels == x.shape[1] else torch.cat([mean, torch.sin(3 * x + place)], dim=1)


def step_of(channels: int, scale: float = 1.0) -> Callable[[StepBuffers, int], None]:
    def step(buffers: StepBuffers, index: int) -> None:
        x, t = torch.from_numpy(buffers.sample), float(buffers.real_timestep[0])
        half = x[: x.shape[0] // 2] if buffers.part == "both" else x
        found = toy(half, t, channels).numpy()
        buffers.prediction[...] = np.concatenate([scale * found, found]) if buffers.part == "both" else found

    return step


def ours(spec: ScheduleSpec, rule: str, steps: int, channels: int = 3, eta: float = 0.0, start: int = 0) -> list[Any]:
    schedule = Schedule(spec, rule, steps, eta)
    generator = Generator(SEED)
    initial = generator.randn(SHAPE) * np.float32(schedule.init_noise_sigma)
    seen: list[Any] = [(initial, None)]
    hooks = Hooks(on_step=lambda done: seen.append((done.sample.copy(), done.denoised.copy())))
    step = step_of(channels)
    found = sample(step, schedule, initial, output_channels=channels, generators=[generator], hooks=hooks, start=start)
    assert found is not None
    assert np.array_equal(found, seen[-1][0])
    return seen


def theirs(scheduler: Any, channels: int = 3, eta: float = 0.0, start: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(SEED)
    torch.randn(SHAPE, generator=generator)
    # The last digit of a normal counts where the first noise level is 4096, so both start from the same ones.
    x = torch.from_numpy(Generator(SEED).randn(SHAPE)) * scheduler.init_noise_sigma
    more: dict[str, Any] = {"eta": eta} if eta else {}
    names = scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]
    if "generator" in names:
        more["generator"] = generator
    if hasattr(scheduler, "set_begin_index"):
        # Else rules whose rounded timesteps repeat begin at the second of two equal ones.
        scheduler.set_begin_index(start)
    seen: list[Any] = [(x.numpy(), None)]
    timesteps = scheduler.timesteps[start:]
    for i, t in enumerate(timesteps):
        if "prev_timestep" in names:
            more["prev_timestep"] = timesteps[i + 1] if i + 1 < len(timesteps) else None
        predicted = toy(scheduler.scale_model_input(x, t), float(t), channels)
        done = scheduler.step(predicted, t, x, **more)
        x = done.prev_sample
        seen.append((x.numpy(), getattr(done, "pred_original_sample", None)))
    return seen


def agree(mine: list[Any], reference: list[Any]) -> None:
    assert len(mine) == len(reference)
    largest = 0.0
    for i, ((x, clean), (y, expected)) in enumerate(zip(mine, reference)):
        # One unit in the last place of the largest sample so far survives in all that are computed from it.
        rounding = largest * 2**-23
        assert np.abs(x - y).max() <= 1e-5 * max(1.0, np.abs(y).max()) + rounding, f"after {i} evaluations"
        largest = max(largest, float(np.abs(y).max()))
        if expected is not None:
            # A clean sample is a difference of samples; at little signal its error is theirs, stretched.
            bound = 2e-5 * max(1.0, np.abs(expected.numpy()).max()) + rounding
            assert np.abs(clean - expected.numpy()).max() <= bound, f"clean sample of evaluation {i}"


SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SPEC = {"betas": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
SD = {**SCALED, "steps_offset": 1}
SD_SPEC = {**SPEC, "steps_offset": 1}
BOUNDED = {"clip_sample": True, "clip_sample_range": 1.2}

CASES = {
    "ddim": ("DDIMScheduler", {**SD, "clip_sample": False}, "ddim", SD_SPEC, 20),
    "ddim-final-alpha": (
        *("DDIMScheduler", {**SD, "clip_sample": False, "set_alpha_to_one": False}),
        *("ddim", {**SD_SPEC, "set_alpha_to_one": False}, 7),
    ),
    "ddim-clip-linear": ("DDIMScheduler", BOUNDED, "ddim", {"clip_sample": 1.2}, 13),
    "ddim-v-zero-snr": (
        "DDIMScheduler",
        {
            **SCALED,
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        *("ddim", {**SPEC, "prediction": "v", "zero_terminal_snr": True, "spacing": "trailing"}, 12),
    ),
    "ddim-sample": (
        *("DDIMScheduler", {"prediction_type": "sample", "clip_sample": False, "timestep_spacing": "linspace"}),
        *("ddim", {"prediction": "sample", "spacing": "linspace"}, 9),
    ),
    "ddim-threshold": (
        *("DDIMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5}),
        *("ddim", {"threshold": ThresholdSpec(0.95, 1.5)}, 10),
    ),
    "ddim-explicit-betas": (
        *("DDIMScheduler", {"trained_betas": [0.01 * (i + 1) for i in range(40)], "num_train_timesteps": 40}),
        "ddim",
        {
            "betas": "explicit",
            "train_steps": 40,
            "values": tuple(0.01 * (i + 1) for i in range(40)),
            "clip_sample": 1.0,
        },
        8,
    ),
    "ddpm": ("DDPMScheduler", {"clip_sample": True}, "ddpm", {"clip_sample": 1.0}, 12),
    "ddpm-large-linspace": (
        *("DDPMScheduler", {"variance_type": "fixed_large", "timestep_spacing": "linspace", "clip_sample": False}),
        *("ddpm", {"variance": "fixed_large", "spacing": "linspace"}, 9),
    ),
    "ddpm-small-log-cosine": (
        *("DDPMScheduler", {**COSINE, "variance_type": "fixed_small_log", "timestep_spacing": "trailing"}),
        *(
            "ddpm",
            {"betas": "squared_cosine", "variance": "fixed_small_log", "spacing": "trailing", "clip_sample": 1.0},
        ),
        11,
    ),
    "ddpm-v": (
        *("DDPMScheduler", {**SCALED, "prediction_type": "v_prediction", "clip_sample": False}),
        *("ddpm", {**SPEC, "prediction": "v"}, 10),
    ),
    "pndm": ("PNDMScheduler", {**SD, "skip_prk_steps": True}, "pndm", {**SD_SPEC, "set_alpha_to_one": False}, 12),
    "pndm-one-step": (
        "PNDMScheduler",
        {**SD, "skip_prk_steps": True},
        "plms",
        {**SD_SPEC, "set_alpha_to_one": False},
        1,
    ),
    "pndm-two-steps": (
        "PNDMScheduler",
        {**SD, "skip_prk_steps": True},
        "plms",
        {**SD_SPEC, "set_alpha_to_one": False},
        2,
    ),
    "pndm-v-trailing": (
        "PNDMScheduler",
        {
            **SCALED,
            "skip_prk_steps": True,
            "set_alpha_to_one": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
        *("pndm", {**SPEC, "prediction": "v", "spacing": "trailing"}, 10),
    ),
    "pndm-runge-kutta": (
        *("PNDMScheduler", {}),
        *("pndm", {"skip_prk_steps": False, "set_alpha_to_one": False}, 10),
    ),
    "euler": ("EulerDiscreteScheduler", SCALED, "euler", {**SPEC, "spacing": "linspace"}, 12),
    "euler-leading": ("EulerDiscreteScheduler", {**SD, "timestep_spacing": "leading"}, "euler", SD_SPEC, 12),
    "euler-karras-sigma-min": (
        "EulerDiscreteScheduler",
        {**SCALED, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
        *("euler", {**SPEC, "karras_sigmas": True, "final_sigma": "sigma_min", "spacing": "trailing"}, 10),
    ),
    "euler-v-zero-snr": (
        "EulerDiscreteScheduler",
        {
            **SCALED,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
        },
        *("euler", {**SPEC, "prediction": "v", "zero_terminal_snr": True, "spacing": "trailing"}, 10),
    ),
    "euler-sample": (
        *("EulerDiscreteScheduler", {"prediction_type": "sample"}),
        *("euler", {"prediction": "sample", "spacing": "linspace"}, 10),
    ),
    "euler-ancestral": (
        *("EulerAncestralDiscreteScheduler", SCALED),
        *("euler-ancestral", {**SPEC, "spacing": "linspace"}, 12),
    ),
    "euler-ancestral-v": (
        *("EulerAncestralDiscreteScheduler", {**SD, "timestep_spacing": "leading", "prediction_type": "v_prediction"}),
        *("euler-ancestral", {**SD_SPEC, "prediction": "v"}, 9),
    ),
    "heun": ("HeunDiscreteScheduler", SCALED, "heun", {**SPEC, "spacing": "linspace"}, 8),
    "heun-clip-karras": (
        *("HeunDiscreteScheduler", {**SD, **BOUNDED, "use_karras_sigmas": True, "timestep_spacing": "leading"}),
        *("heun", {**SD_SPEC, "karras_sigmas": True, "clip_sample": 1.2}, 9),
    ),
    "heun-v": (
        *("HeunDiscreteScheduler", {**SCALED, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
        *("heun", {**SPEC, "prediction": "v", "spacing": "trailing"}, 7),
    ),
    "dpm": ("DPMSolverMultistepScheduler", SCALED, "dpm++2m", {**SPEC, "spacing": "linspace"}, 10),
    "dpm-20-karras": (
        *("DPMSolverMultistepScheduler", {**SCALED, "use_karras_sigmas": True}),
        *("dpm++2m", {**SPEC, "spacing": "linspace", "karras_sigmas": True}, 20),
    ),
    "dpm-karras-cosine": (
        *("DPMSolverMultistepScheduler", {**COSINE, "use_karras_sigmas": True, "thresholding": True}),
        "dpm++2m",
        {"betas": "squared_cosine", "spacing": "linspace", "karras_sigmas": True, "threshold": ThresholdSpec()},
        10,
    ),
    "dpm-sigma-min": (
        *("DPMSolverMultistepScheduler", {**SD, "timestep_spacing": "leading", "final_sigmas_type": "sigma_min"}),
        *("dpm++2m", {**SD_SPEC, "final_sigma": "sigma_min"}, 16),
    ),
    "dpm-sigma-min-few": (
        "DPMSolverMultistepScheduler",
        {**SD, "timestep_spacing": "leading", "final_sigmas_type": "sigma_min", "lower_order_final": False},
        *("dpm++2m", {**SD_SPEC, "final_sigma": "sigma_min", "lower_order_final": False}, 8),
    ),
    "dpm-first-order-v": (
        "DPMSolverMultistepScheduler",
        {**SCALED, "solver_order": 1, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        *("dpm++2m", {**SPEC, "solver_order": 1, "prediction": "v", "spacing": "trailing"}, 10),
    ),
    "lcm": ("LCMScheduler", {}, "lcm", SPEC, 4),
    "lcm-v-clip": (
        *("LCMScheduler", {**BOUNDED, "prediction_type": "v_prediction", "original_inference_steps": 100}),
        *("lcm", {**SPEC, "prediction": "v", "clip_sample": 1.2, "original_steps": 100}, 7),
    ),
    "unclip": (
        *("UnCLIPScheduler", {}),
        *("unclip", {"betas": "squared_cosine", "variance": "fixed_small_log", "clip_sample": 1.0}, 12),
    ),
    "unclip-prior": (
        *("UnCLIPScheduler", {"prediction_type": "sample", "clip_sample_range": 5.0}),
        "unclip",
        {"betas": "squared_cosine", "variance": "fixed_small_log", "clip_sample": 5.0, "prediction": "sample"},
        25,
    ),
    "unclip-every-timestep": (
        *("UnCLIPScheduler", {"num_train_timesteps": 12}),
        "unclip",
        {"betas": "squared_cosine", "train_steps": 12, "variance": "fixed_small_log", "clip_sample": 1.0},
        12,
    ),
    "consistency": (
        *("ConsistencyDecoderScheduler", {}),
        *("consistency", {"betas": "squared_cosine", "train_steps": 1024}, 2),
    ),
}
LEARNED = {
    "ddpm-learned-range": (
        "DDPMScheduler",
        {**COSINE, "variance_type": "learned_range", "thresholding": True, "sample_max_value": 1.5},
        "ddpm",
        {"betas": "squared_cosine", "variance": "learned_range", "threshold": ThresholdSpec(0.995, 1.5)},
    ),
    "unclip-learned-range": (
        *("UnCLIPScheduler", {"variance_type": "learned_range"}),
        *("unclip", {"betas": "squared_cosine", "variance": "learned_range", "clip_sample": 1.0}),
    ),
}


def made(name: str, config: dict[str, Any], steps: int) -> Any:
    kinds = scheduling_consistency_decoder if name.startswith("Consistency") else diffusers
    scheduler = getattr(kinds, name)(**config)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("case", CASES)
def test_rule_equals_diffusers(case: str) -> None:
    name, config, rule, spec, steps = CASES[case]
    scheduler = made(name, config, steps)
    schedule = Schedule(ScheduleSpec(**spec), rule, steps)
    assert schedule.timesteps == pytest.approx([float(t) for t in scheduler.timesteps], abs=1e-3)
    agree(ours(ScheduleSpec(**spec), rule, steps), theirs(scheduler))


@pytest.mark.parametrize("case", LEARNED)
def test_learned_variances(case: str) -> None:
    name, config, rule, spec = LEARNED[case]
    agree(ours(ScheduleSpec(**spec), rule, 14, channels=6), theirs(made(name, config, 14), channels=6))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_noise_of_ddim(eta: float) -> None:
    scheduler = made("DDIMScheduler", {**SD, "clip_sample": False}, 15)
    agree(ours(ScheduleSpec(**SD_SPEC), "ddim", 15, eta=eta), theirs(scheduler, eta=eta))


@pytest.mark.parametrize(
    ("name", "config", "rule", "more"),
    [
        ("DDIMScheduler", {"clip_sample": False}, "ddim", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}, "pndm", {"set_alpha_to_one": False}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, "euler", {}),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}, "euler-ancestral", {}),
        ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, "heun", {}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, "dpm++2m", {}),
        ("LCMScheduler", {}, "lcm", {}),
    ],
)
def test_partly_noised_pictures_start_later(name: str, config: dict[str, Any], rule: str, more: dict[str, Any]) -> None:
    scheduler = made(name, {**SD, **config}, 12)
    spec = ScheduleSpec(**SD_SPEC, **more)
    schedule = Schedule(spec, rule, 12)
    start = schedule.start(0.6)
    assert start == (12 - 7) * scheduler.order
    agree(ours(spec, rule, 12, start=start), theirs(scheduler, start=start))
    if hasattr(scheduler, "set_begin_index"):
        scheduler = made(name, {**SD, **config}, 12)
        scheduler.set_begin_index(start)
    x, noise = Generator(5).randn(SHAPE), Generator(6).randn(SHAPE)
    noised = scheduler.add_noise(torch.from_numpy(x), torch.from_numpy(noise), scheduler.timesteps[start : start + 1])
    assert np.abs(schedule.add_noise(x, noise, start) - noised.numpy()).max() < 5e-6


@pytest.mark.parametrize(
    ("name", "rule"),
    [("DDIMScheduler", "ddim"), ("EulerDiscreteScheduler", "euler"), ("DPMSolverMultistepScheduler", "dpm++2m")],
)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_of_any_number_of_steps(name: str, rule: str, spacing: Any) -> None:
    """At some numbers the trailing spacing lies half-way between timesteps, and the last digit of a stride decides."""
    scheduler = getattr(diffusers, name)(timestep_spacing=spacing)
    for steps in (*range(1, 110, 3), 48, 61, 96, 333, 998, 999):
        scheduler.set_timesteps(steps)
        # At 61 and 103 among others diffusers' trailing spacing visits a timestep -1 besides, which is none.
        expected = [float(t) for t in scheduler.timesteps if t >= 0]
        assert Schedule(ScheduleSpec(spacing=spacing), rule, steps).timesteps == pytest.approx(expected, abs=1e-3), (
            steps
        )


def test_listed_timesteps() -> None:
    timesteps = (951, 820, 700, 512, 401, 222, 100, 17, 3, 0)
    scheduler = diffusers.DDPMScheduler(**COSINE)
    scheduler.set_timesteps(timesteps=list(timesteps))
    spec = ScheduleSpec("squared_cosine", spacing="explicit", timesteps=timesteps, clip_sample=1.0)
    agree(ours(spec, "ddpm", 10), theirs(scheduler))


def test_another_number_of_steps_than_listed_takes_the_leading_spacing() -> None:
    spec = ScheduleSpec(spacing="explicit", timesteps=(900, 500, 100), clip_sample=1.0)
    agree(ours(spec, "ddpm", 5), theirs(made("DDPMScheduler", {}, 5)))


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance(rescale: float) -> None:
    """Unconditional predictions are half the conditional ones here; diffusers' pipelines do the same arithmetic."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    scheduler = made("DDIMScheduler", {**SD, "clip_sample": False}, 10)
    schedule = Schedule(ScheduleSpec(**SD_SPEC), "ddim", 10)
    x = Generator(SEED).randn(SHAPE)
    y = torch.from_numpy(x)
    for t in scheduler.timesteps:
        conditional = toy(y, float(t))
        guided = 0.5 * conditional + 4.0 * (conditional - 0.5 * conditional)
        guided = rescale_noise_cfg(guided, conditional, rescale) if rescale else guided
        y = scheduler.step(guided, t, y).prev_sample
    for two_passes in (False, True):
        calls: list[tuple[str, int]] = []

        def step(buffers: StepBuffers, index: int, calls: list[tuple[str, int]] = calls) -> None:
            calls.append((buffers.part, buffers.rows))
            step_of(3, 0.5)(buffers, index)
            if buffers.part == "unconditional":
                np.multiply(buffers.prediction, 0.5, out=buffers.prediction)

        options = SampleOptions(4.0, rescale, two_passes=two_passes)
        found = sample(step, schedule, x, options)
        assert np.abs(found - y.numpy()).max() <= 1e-5 * max(1.0, float(y.abs().max()))
        expected = [("unconditional", 2), ("conditional", 2)] if two_passes else [("both", 4)]
        assert calls == expected * 10


def test_learned_variances_are_not_guided() -> None:
    """As in diffusers' IF and unCLIP pipelines: guided mean, conditional variance."""
    scheduler = made("DDPMScheduler", {**COSINE, "variance_type": "learned_range"}, 8)
    generator, reference = Generator(SEED), torch.Generator().manual_seed(SEED)
    x = generator.randn(SHAPE)
    y = torch.randn(SHAPE, generator=reference)
    for t in scheduler.timesteps:
        both = toy(y, float(t), 6)
        mean, variance = both.split(3, dim=1)
        guided = torch.cat([0.5 * mean + 3.0 * (mean - 0.5 * mean), variance], dim=1)
        y = scheduler.step(guided, t, y, generator=reference).prev_sample
    spec = ScheduleSpec("squared_cosine", variance="learned_range", clip_sample=1.0)
    schedule = Schedule(spec, "ddpm", 8)
    found = sample(step_of(6, 0.5), schedule, x, SampleOptions(3.0), output_channels=6, generators=[generator])
    assert np.abs(found - y.numpy()).max() <= 1e-5


def test_one_generator_for_each_image() -> None:
    scheduler = made("DDPMScheduler", {}, 8)
    mine, reference = [Generator(s) for s in (3, 4)], [torch.Generator().manual_seed(s) for s in (3, 4)]
    x = np.concatenate([g.randn((1, *SHAPE[1:])) for g in mine])
    y = torch.cat([torch.randn((1, *SHAPE[1:]), generator=g) for g in reference])
    for t in scheduler.timesteps:
        y = scheduler.step(toy(y, float(t)), t, y, generator=reference).prev_sample
    found = sample(step_of(3), Schedule(ScheduleSpec(clip_sample=1.0), "ddpm", 8), x, generators=mine)
    assert np.abs(found - y.numpy()).max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "rule"), [("DDIMScheduler", "ddim"), ("EulerDiscreteScheduler", "euler"), ("PNDMScheduler", "pndm")]
)
def test_what_is_known_is_put_back_as_in_inpainting(name: str, rule: str) -> None:
    """The loop of diffusers' `StableDiffusionInpaintPipeline` for UNets of four channels."""
    more = {"PNDMScheduler": {"skip_prk_steps": True}, "DDIMScheduler": {"clip_sample": False}}.get(name, {})
    scheduler = made(name, {**SD, "timestep_spacing": "leading", **more}, 9)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    picture, noise = Generator(5).randn(SHAPE), Generator(6).randn(SHAPE)
    mask = (Generator(7).randn((1, 1, 8, 8)) > 0).astype(np.float32)
    schedule = Schedule(ScheduleSpec(**SD_SPEC, set_alpha_to_one=rule != "pndm"), rule, 9)
    x = noise * np.float32(schedule.init_noise_sigma)
    y = torch.from_numpy(noise) * scheduler.init_noise_sigma
    for i, t in enumerate(scheduler.timesteps):
        y = scheduler.step(toy(scheduler.scale_model_input(y, t), float(t)), t, y).prev_sample
        proper = torch.from_numpy(picture)
        if i < len(scheduler.timesteps) - 1:
            proper = scheduler.add_noise(proper, torch.from_numpy(noise), scheduler.timesteps[i + 1 : i + 2])
        y = (1 - torch.from_numpy(mask)) * proper + torch.from_numpy(mask) * y
    found = sample(step_of(3), schedule, x, known=KnownPicture(picture, mask, noise))
    assert np.abs(found - y.numpy()).max() <= 1e-5 * max(1.0, float(y.abs().max()))
    kept = np.broadcast_to(mask == 0, SHAPE)
    assert np.array_equal(found[kept], picture[kept])


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squared_cosine"])
def test_noise_of_a_training_timestep(name: str, betas: str) -> None:
    config = COSINE if betas == "squared_cosine" else {"beta_schedule": betas}
    scheduler = getattr(diffusers, name)(**config)
    x, noise = Generator(1).randn(SHAPE), Generator(2).randn(SHAPE)
    spec = ScheduleSpec(betas)  # type: ignore[arg-type]
    for t in (0, 1, 250, 999):
        expected = scheduler.add_noise(torch.from_numpy(x), torch.from_numpy(noise), torch.tensor([t]))
        assert np.abs(add_noise(spec, x, noise, t) - expected.numpy()).max() < 1e-6


@pytest.mark.parametrize("size", [1, 5, 15, 16, 17, 100, 3 * 64 * 64])
def test_normals_continue_as_torch_s(size: int) -> None:
    """Draws of every size, one after another from one generator, with a seed that needs all 64 bits.

    From 16 on they are torch's bit for bit where torch itself uses AVX2; its other builds take the C library's
    logarithm and cosine.
    """
    exact = size >= 16 and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    seed = 2**63 + 12345
    mine, reference = Generator(seed), torch.Generator().manual_seed(seed)
    for _ in range(3):
        expected = torch.randn(size, generator=reference).numpy()
        assert np.abs(mine.randn((size,)) - expected).max() <= (0 if exact else 2e-6)
        assert np.abs(mine.randn((3,)) - torch.randn(3, generator=reference).numpy()).max() < 2e-6


def test_steps_are_seen_as_they_happen() -> None:
    seen: list[StepDone] = []
    hooks = Hooks(on_step=seen.append)
    schedule = Schedule(ScheduleSpec(), "ddim", 5)
    found = sample(step_of(3), schedule, Generator(0).randn(SHAPE), hooks=hooks)
    assert [(done.step, done.steps) for done in seen] == [(i + 1, 5) for i in range(5)]
    assert np.array_equal(seen[-1].sample, found)
