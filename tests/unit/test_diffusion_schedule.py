"""Noise schedules, the timesteps they are walked at, and what cannot be walked."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from vlrt import _C
from vlrt.diffusion import Generator, Schedule, add_noise, randn
from vlrt.diffusion.schedule import noise_schedule
from vlrt.diffusion_sections import RULES, ScheduleSpec
from vlrt.errors import BundleError, UsageError


def test_linear_variances() -> None:
    schedule = noise_schedule(ScheduleSpec())
    betas = np.linspace(1e-4, 0.02, 1000)
    assert schedule.betas == pytest.approx(betas, rel=1e-6)
    assert schedule.alphas_cumprod == pytest.approx(np.cumprod(1 - betas), rel=1e-4)


def test_squared_cosine_is_its_formula() -> None:
    """Nichol and Dhariwal 2021, equation 17."""
    place = (np.arange(1, 995) / 1000 + 0.008) / 1.008
    signal = np.cos(place * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert noise_schedule(ScheduleSpec("squared_cosine")).alphas_cumprod[:994] == pytest.approx(signal, rel=1e-3)


def test_zero_terminal_signal_keeps_the_first_timestep() -> None:
    plain = noise_schedule(ScheduleSpec("scaled_linear")).alphas_cumprod
    rescaled = noise_schedule(ScheduleSpec("scaled_linear", zero_terminal_snr=True)).alphas_cumprod
    assert rescaled[0] == pytest.approx(plain[0], abs=1e-6)
    assert rescaled[-1] == 0


def test_explicit_variances() -> None:
    spec = ScheduleSpec("explicit", train_steps=3, values=(0.1, 0.2, 0.5))
    assert noise_schedule(spec).alphas_cumprod == pytest.approx([0.9, 0.72, 0.36], rel=1e-6)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ("ddim5", [800, 600, 400, 200, 0]),
        ("4", [999, 666, 333, 0]),
        ("2, 3", [999, 750, 500, 499, 0]),
        ("1,1", [500, 0]),
    ],
)
def test_sections(sections: str, expected: list[int]) -> None:
    found = Schedule(ScheduleSpec(spacing="sections", sections=sections), "ddpm", len(expected))
    assert found.timesteps == tuple(expected)


def test_fast27_is_glide_s() -> None:
    """Ten of each of the first two fifths, three of the third, two of each other; the noisiest but two last."""
    found = _C.section_timesteps("fast27", 1000)
    assert len(found) == 27
    assert found[:8] == [997, 800, 799, 600, 599, 500, 400, 399]
    assert found[-10:] == [199, 177, 155, 133, 111, 88, 66, 44, 22, 0][:10]


def test_another_number_of_steps_is_one_section() -> None:
    schedule = Schedule(ScheduleSpec(spacing="sections", sections="fast27"), "ddpm", 4)
    assert schedule.timesteps == (999, 666, 333, 0)


def test_ddim_steps_over_listed_timesteps_to_the_next_of_them() -> None:
    spec = ScheduleSpec(spacing="explicit", timesteps=(900, 300, 0))
    x, prediction = np.ones((1, 1, 1, 1), np.float32), np.full((1, 1, 1, 1), 0.5, np.float32)
    from vlrt.diffusion import sample

    signal = noise_schedule(spec).alphas_cumprod
    expected = 1.0
    for t, after in ((900, signal[300]), (300, signal[0]), (0, 1.0)):
        clean = (expected - math.sqrt(1 - signal[t]) * 0.5) / math.sqrt(signal[t])
        expected = math.sqrt(after) * clean + math.sqrt(1 - after) * 0.5
    found = sample(lambda buffers, _: np.copyto(buffers.prediction, prediction), Schedule(spec, "ddim", 3), x)
    assert found is not None
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_outside_the_training_are_refused(rule: str, steps: int) -> None:
    with pytest.raises(UsageError, match=f"with {steps} steps: expected 1 to 1000"):
        Schedule(ScheduleSpec(), rule, steps)


def test_unknown_rules_are_refused() -> None:
    with pytest.raises(UsageError, match="no update rule `dpm3`") as caught:
        Schedule(ScheduleSpec(), "dpm3", 10)
    assert "dpm++2m" in caught.value.hint


@pytest.mark.parametrize(
    ("spec", "rule", "steps", "what"),
    [
        (ScheduleSpec(variance="fixed_large_log"), "ddpm", 5, "fixed_large_log"),
        (ScheduleSpec(variance="fixed_small"), "unclip", 5, "fixed_small_log and learned_range"),
        (ScheduleSpec(variance="fixed_small_log"), "unclip", 1, "at least 2 steps"),
        (ScheduleSpec(prediction="sample"), "pndm", 5, "noise or velocity"),
        (ScheduleSpec(skip_prk_steps=False), "pndm", 3, "at least 4 steps"),
        (ScheduleSpec(solver_order=3), "dpm++2m", 5, "orders 1 and 2"),
        (ScheduleSpec(original_steps=50), "lcm", 51, "distilled with 50 steps"),
        (ScheduleSpec(), "consistency", 2, "1024"),
        (ScheduleSpec(steps_offset=20), "ddim", 1000, "outside 0 to 999"),
        (ScheduleSpec(spacing="sections", sections="9,x"), "ddpm", 5, None),
    ],
)
def test_what_a_rule_cannot_walk(spec: ScheduleSpec, rule: str, steps: int, what: str | None) -> None:
    with pytest.raises(UsageError, match=what):
        Schedule(spec, rule, steps)


@pytest.mark.parametrize("name", ["steps_offset", "original_steps", "solver_order"])
@pytest.mark.parametrize("value", [-1, 2**63, 2**70])
def test_numbers_that_no_manifest_means(name: str, value: int) -> None:
    with pytest.raises(BundleError, match=name.split("_")[-1]):
        ScheduleSpec(**{name: value})  # type: ignore[arg-type]


def test_noise_is_of_the_level() -> None:
    """Ho, Jain and Abbeel 2020, equation 4; over noise levels, Karras et al. 2022."""
    x, noise = np.float32([[1.0, -2.0]]), np.float32([[0.5, 3.0]])
    spec = ScheduleSpec()
    signal = float(noise_schedule(spec).alphas_cumprod[400])
    expected = math.sqrt(signal) * x + math.sqrt(1 - signal) * noise
    assert add_noise(spec, x, noise, 400) == pytest.approx(expected, rel=1e-6)
    ddim, euler = (Schedule(spec, rule, 5) for rule in ("ddim", "euler"))
    assert ddim.add_noise(x, noise, 2) == pytest.approx(expected, rel=1e-6)
    assert euler.add_noise(x, noise, 2) == pytest.approx(expected / math.sqrt(signal), rel=1e-5)
    with pytest.raises(UsageError, match="noise level 1000"):
        add_noise(spec, x, noise, 1000)


@pytest.mark.parametrize(("strength", "rule", "start"), [(1.0, "ddim", 0), (0.6, "ddim", 4), (0.35, "heun", 14)])
def test_strength(strength: float, rule: str, start: int) -> None:
    assert Schedule(ScheduleSpec(), rule, 10).start(strength) == start


def test_a_strength_without_steps_is_refused() -> None:
    with pytest.raises(UsageError, match=r"strength of 0\.05 leaves none of 10 steps") as caught:
        Schedule(ScheduleSpec(), "ddim", 10).start(0.05)
    assert "0.1 or more" in caught.value.hint


def test_plms_is_pndm_without_its_start() -> None:
    spec = ScheduleSpec(skip_prk_steps=False)
    assert Schedule(spec, "plms", 10).timesteps == Schedule(replace(spec, skip_prk_steps=True), "pndm", 10).timesteps
    assert len(Schedule(spec, "pndm", 10).timesteps) == 19


def test_rules_over_noise_levels_stop_between_timesteps() -> None:
    assert not Schedule(ScheduleSpec(spacing="linspace"), "euler", 12).whole
    assert Schedule(ScheduleSpec(spacing="leading"), "euler", 10).whole
    assert not Schedule(ScheduleSpec(spacing="leading", karras_sigmas=True), "euler", 10).whole
    assert Schedule(ScheduleSpec(spacing="linspace"), "dpm++2m", 10).whole


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_beyond_64_bits_are_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="does not fit 64 bits"):
        Generator(seed)


def test_batches_draw_at_once_or_row_by_row() -> None:
    at_once = randn([Generator(1)], (2, 3, 8))
    assert np.array_equal(at_once, Generator(1).randn((2, 3, 8)))
    rows = randn([Generator(1), Generator(2)], (2, 3, 8))
    assert np.array_equal(rows[1], Generator(2).randn((3, 8)))
    with pytest.raises(UsageError, match="2 generators for 3 images"):
        randn([Generator(1), Generator(2)], (3, 8))
