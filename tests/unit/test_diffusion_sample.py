"""The sampling loop against a plain NumPy twin, closed forms, and what goes wrong."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vlrt.diffusion import Generator, Hooks, KnownPicture, Loop, SampleOptions, Schedule, StepBuffers, sample
from vlrt.diffusion.schedule import noise_schedule
from vlrt.diffusion_sections import ScheduleSpec
from vlrt.errors import EngineError, UsageError

Array = NDArray[np.float64]
SHAPE = (2, 3, 4, 4)
RESPACED = ScheduleSpec(
    "squared_cosine", variance="learned_range", spacing="sections", sections="9", respaced=True, clip_sample=1.0
)


def conditional(x: Any) -> Any:
    return np.concatenate([np.tanh(x), np.sin(3 * x)], axis=1)


def unconditional(x: Any) -> Any:
    return np.concatenate([0.5 * np.tanh(x) + 0.1, np.cos(x)], axis=1)


def step(buffers: StepBuffers, index: int) -> None:
    x = buffers.sample
    if buffers.part == "both":
        half = len(x) // 2
        buffers.prediction[:half] = unconditional(x[:half])
        buffers.prediction[half:] = conditional(x[half:])
    else:
        buffers.prediction[...] = (conditional if buffers.part == "conditional" else unconditional)(x)


def means(buffers: StepBuffers, index: int) -> None:
    """The same without learned variances."""
    buffers.prediction[...] = np.tanh(buffers.sample)


@dataclass
class Twin:
    """GLIDE's respaced diffusion in double precision (glide-text2im, `gaussian_diffusion`), from its equations."""

    guidance: float
    known: tuple[Array, Array] | None = None
    gradient: float = 0.0

    def __post_init__(self) -> None:
        signal = noise_schedule(RESPACED).alphas_cumprod.astype(np.float64)
        self.signal = signal[list(reversed([int(t) for t in Schedule(RESPACED, "ddpm", 9).timesteps]))]
        self.before = np.append(1.0, self.signal[:-1])
        self.betas = 1 - self.signal / self.before
        variance = self.betas * (1 - self.before) / (1 - self.signal)
        self.log_variance = np.log(np.append(variance[1], variance[1:]))

    def predict(self, x: Array) -> tuple[Array, Array]:
        mean, variance = np.split(conditional(x), 2, axis=1)
        other = unconditional(x)[:, :3]
        return (other + self.guidance * (mean - other) if self.guidance > 1 else mean), variance

    def clean(self, x: Array, eps: Array, i: int) -> Array:
        found = (x - math.sqrt(1 - self.signal[i]) * eps) / math.sqrt(self.signal[i])
        if self.known is not None:
            picture, mask = self.known
            found = found * mask + picture * (1 - mask)
        return np.clip(found, -1, 1)

    def ancestral(self, x: Array, noise: Array, i: int) -> Array:
        eps, spread = self.predict(x)
        share = (spread + 1) / 2
        log_variance = share * np.log(self.betas[i]) + (1 - share) * self.log_variance[i]
        clean = self.clean(x, eps, i)
        mean = self.betas[i] * math.sqrt(self.before[i]) / (1 - self.signal[i]) * clean
        mean += (1 - self.before[i]) * math.sqrt(1 - self.betas[i]) / (1 - self.signal[i]) * x
        mean += np.exp(log_variance) * self.gradient * np.cos(x)
        return mean + (np.exp(0.5 * log_variance) * noise if i else 0)

    def implicit(self, x: Array, i: int) -> Array:
        clean = self.clean(x, self.predict(x)[0], i)
        eps = (x - math.sqrt(self.signal[i]) * clean) / math.sqrt(1 - self.signal[i])
        if self.gradient:
            eps -= math.sqrt(1 - self.signal[i]) * self.gradient * np.cos(x)
            clean = (x - math.sqrt(1 - self.signal[i]) * eps) / math.sqrt(self.signal[i])
        return math.sqrt(self.before[i]) * clean + math.sqrt(1 - self.before[i]) * eps


def picture_and_mask() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return Generator(8).randn(SHAPE).clip(-1, 1), (Generator(9).randn((1, 1, 4, 4)) > 0).astype(np.float32)


@pytest.mark.parametrize("rule", ["ddpm", "ddim"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.parametrize("gradient", [0.0, 0.5])
def test_loop_equals_its_twin(rule: str, guidance: float, with_known: bool, gradient: float) -> None:
    """Paired draws in every step, a replaced clean sample, a gradient: all that GLIDE's sampler does."""
    generator, reference = Generator(3), Generator(3)
    initial, x = generator.randn(SHAPE), reference.randn(SHAPE).astype(np.float64)
    picture, mask = picture_and_mask()
    twin = Twin(guidance, (picture.astype(np.float64), mask.astype(np.float64)) if with_known else None, gradient)
    for i in reversed(range(9)):
        drawn = reference.randn((2 * SHAPE[0], *SHAPE[1:]))[: SHAPE[0]].astype(np.float64)
        x = twin.ancestral(x, drawn, i) if rule == "ddpm" else twin.implicit(x, i)

    def fill(at: NDArray[np.float32], index: int, filled: NDArray[np.float32]) -> None:
        filled[...] = gradient * np.cos(at)

    found = sample(
        step,
        Schedule(RESPACED, rule, 9),
        initial,
        SampleOptions(guidance, paired_noise=True, always_draw=True),
        output_channels=6,
        generators=[generator],
        known=KnownPicture(picture, mask) if with_known else None,
        hooks=Hooks(gradient=fill if gradient else None),
    )
    assert found is not None
    assert np.abs(found - x).max() < 2e-5
    # Both have drawn as much: the next stage continues with the same numbers.
    assert np.array_equal(generator.randn((16,)), reference.randn((16,)))


# Gaussian data N(MEAN, DEVIATION²): the best prediction of noisy samples is known.
MEAN, DEVIATION = 0.3, 0.5


def exact(signal: float, noise: float, x: Any) -> Any:
    """E[x₀ | x_t] of Gaussian data."""
    gain = signal * DEVIATION**2 / (signal**2 * DEVIATION**2 + noise**2)
    return MEAN + gain * (x - signal * MEAN)


def exact_step(schedule: Schedule) -> Any:
    def fill(buffers: StepBuffers, index: int) -> None:
        at = schedule.evaluations[index]
        x = buffers.sample.astype(np.float64) * at.divisor
        buffers.prediction[...] = (x - at.signal * exact(at.signal, at.noise, x)) / at.noise

    return fill


def test_one_ancestral_step_has_the_posterior_s_mean() -> None:
    """From the joint Gaussian of x_t and x_{t-1}, with no word of x₀."""
    spec = ScheduleSpec(spacing="explicit", timesteps=(700, 400), variance="fixed_small")
    schedule = Schedule(spec, "ddpm", 2)
    seen: list[Any] = []
    hooks = Hooks(on_step=lambda done: seen.append(done.sample.astype(np.float64)))
    generator, reference = Generator(1), Generator(1)
    x = generator.randn(SHAPE)
    sample(exact_step(schedule), schedule, x, generators=[generator], hooks=hooks)
    reference.randn(SHAPE)
    noise = reference.randn(SHAPE).astype(np.float64)
    signal = noise_schedule(spec).alphas_cumprod.astype(np.float64)
    ratio, spread = signal[700] / signal[400], signal[400] * DEVIATION**2 + 1 - signal[400]
    mean = math.sqrt(signal[400]) * MEAN
    gain = math.sqrt(ratio) * spread / (ratio * spread + 1 - ratio)
    posterior = mean + gain * (x - math.sqrt(ratio) * mean)
    deviation = math.sqrt((1 - signal[400]) / (1 - signal[700]) * (1 - ratio))
    assert np.abs(seen[0] - (posterior + deviation * noise)).max() < 1e-5


@pytest.mark.parametrize(
    ("rule", "error"), [("ddim", 2e-2), ("euler", 2e-2), ("pndm", 6e-4), ("heun", 3e-4), ("dpm++2m", 3e-3)]
)
def test_deterministic_rules_follow_the_flow(rule: str, error: float) -> None:
    """The probability flow of Gaussian data keeps a sample's distance from the mean in standard deviations.

    Looked at before the last step, which takes the predicted clean sample itself in most rules. Four times the steps
    bring every rule at least twice as near; the bounds lie a little above what is reached.
    """
    few, many = flow_error(rule, 50), flow_error(rule, 200)
    assert many < error
    assert many < few / 2


def flow_error(rule: str, steps: int) -> float:
    spec = ScheduleSpec("scaled_linear", beta_start=0.00085, beta_end=0.012, spacing="trailing")
    schedule = Schedule(spec, rule, steps)
    x = Generator(2).randn(SHAPE).astype(np.float64) * schedule.init_noise_sigma
    seen: list[Any] = []
    hooks = Hooks(on_step=lambda done: seen.append(done.sample.astype(np.float64)))
    sample(exact_step(schedule), schedule, x.astype(np.float32), hooks=hooks)
    first, last = schedule.evaluations[0], schedule.evaluations[-1]
    spreads = [math.hypot(at.signal * DEVIATION, at.noise) for at in (first, last)]
    expected = last.signal * MEAN + spreads[1] / spreads[0] * (x - first.signal * MEAN)
    return float(np.abs(seen[-2] - expected).max())


def parts_of(options: SampleOptions, steps: int = 10) -> list[str]:
    seen = []

    def counted(buffers: StepBuffers, index: int) -> None:
        seen.append(buffers.part)
        buffers.prediction[...] = 0

    sample(counted, Schedule(ScheduleSpec(), "ddim", steps), np.zeros(SHAPE, np.float32), options)
    return seen


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_guidance_up_to_one_is_one_evaluation(guidance: float) -> None:
    assert parts_of(SampleOptions(guidance)) == ["conditional"] * 10


def test_guidance_interval() -> None:
    expected = ["conditional"] * 2 + ["both"] * 4 + ["conditional"] * 4
    assert parts_of(SampleOptions(2.0, guidance_interval=(0.2, 0.6))) == expected


def test_guided_channels() -> None:
    """Only the first is guided; the others are the conditional prediction."""

    def fill(buffers: StepBuffers, index: int) -> None:
        buffers.prediction[...] = np.repeat([1.0, 3.0], 2).reshape(4, 1, 1, 1)

    schedule = Schedule(ScheduleSpec(prediction="sample"), "ddim", 1)
    found = sample(fill, schedule, np.zeros(SHAPE, np.float32), SampleOptions(5.0, guided_channels=1))
    assert found is not None
    assert found[:, 0] == pytest.approx(1 + 5 * 2, rel=1e-6)
    assert found[:, 1:] == pytest.approx(3.0, rel=1e-6)


def test_buffers_are_the_same_arrays_at_every_step() -> None:
    addresses = set()

    def fill(buffers: StepBuffers, index: int) -> None:
        arrays = (buffers.sample, buffers.timestep, buffers.real_timestep, buffers.prediction)
        addresses.add(tuple(array.__array_interface__["data"][0] for array in arrays))
        assert buffers.timestep.tolist() == [schedule.timesteps[index]] * 4
        assert buffers.real_timestep.tolist() == [schedule.timesteps[index]] * 4
        buffers.prediction[...] = 0

    schedule = Schedule(ScheduleSpec(), "ddim", 6)
    sample(fill, schedule, np.zeros(SHAPE, np.float32), SampleOptions(2.0))
    assert len(addresses) == 1
    assert all(address % 64 == 0 for address in addresses.pop())


def test_embeddings_are_sampled_as_pictures_are() -> None:
    x = Generator(4).randn((3, 24))
    schedule = Schedule(ScheduleSpec(), "ddim", 5)
    flat = sample(means, schedule, x)
    shaped = sample(means, schedule, x.reshape(3, 24, 1, 1))
    assert flat is not None
    assert shaped is not None
    assert np.array_equal(flat.ravel(), shaped.ravel())


@pytest.mark.parametrize("rule", ["ddpm", "pndm", "heun", "dpm++2m"])
def test_loops_are_used_again(rule: str) -> None:
    """Nothing of one run is left in the next, also where the one before was cancelled or failed."""
    schedule = Schedule(ScheduleSpec(), rule, 6)
    loop = Loop(1, SHAPE[1:])
    x = Generator(5).randn((1, *SHAPE[1:]))
    first = loop.run(means, schedule, x, generators=[Generator(6)])
    answers = iter([False, False, True])
    hooks = Hooks(should_cancel=lambda: next(answers))
    assert loop.run(means, schedule, x, generators=[Generator(6)], hooks=hooks) is None

    def failing(buffers: StepBuffers, index: int) -> None:
        means(buffers, index)
        if index == 2:
            raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        loop.run(failing, schedule, x, generators=[Generator(6)])
    again = loop.run(means, schedule, x, generators=[Generator(6)])
    assert first is not None
    assert again is not None
    assert np.array_equal(first, again)


def test_threads_share_a_schedule() -> None:
    """Rules remember steps, of their own run only."""
    schedule = Schedule(ScheduleSpec(), "pndm", 12)
    starts = [Generator(seed).randn(SHAPE) for seed in range(6)]
    alone = [sample(means, schedule, x) for x in starts]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda x: sample(means, schedule, x), starts))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together))


def test_variances_learned_as_they_are() -> None:
    """`learned`, not a share of a range: the model's second half is the variance itself."""
    schedule = Schedule(ScheduleSpec(variance="learned", prediction="sample"), "ddpm", 2)

    def fill(buffers: StepBuffers, index: int) -> None:
        buffers.prediction[:, :3], buffers.prediction[:, 3:] = 0.5, 0.09

    seen: list[Any] = []
    hooks = Hooks(on_step=lambda done: seen.append(done.sample.copy()))
    zero = np.zeros(SHAPE, np.float32)
    sample(fill, schedule, zero, output_channels=6, generators=[Generator(4)], hooks=hooks)
    signal = noise_schedule(schedule.spec).alphas_cumprod.astype(np.float64)
    weight = math.sqrt(signal[0]) * (1 - signal[500] / signal[0]) / (1 - signal[500])
    assert seen[0] == pytest.approx(weight * 0.5 + 0.3 * Generator(4).randn(SHAPE), abs=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_what_is_not_finite_stops_the_run(value: float, guidance: float) -> None:
    def broken(buffers: StepBuffers, index: int) -> None:
        buffers.prediction[...] = 0
        if index == 3:
            buffers.prediction[0, 1, 2, 3] = value

    schedule = Schedule(ScheduleSpec(), "ddim", 5)
    with pytest.raises(EngineError) as caught:
        sample(broken, schedule, np.zeros(SHAPE, np.float32), SampleOptions(guidance), stage="upsampler")
    assert caught.value.what == "`upsampler` stopped at step 4 of 5 (timestep 200): the model gave NaN or infinity"


def test_a_run_in_a_run_is_refused() -> None:
    schedule, loop = Schedule(ScheduleSpec(), "ddim", 2), Loop(1, (1,))
    x = np.zeros((1, 1), np.float32)
    with pytest.raises(RuntimeError, match="running already"):
        loop.run(lambda buffers, index: loop.run(means, schedule, x), schedule, x)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"generators": [Generator(1)] * 3}, "3 generators for 2 images"),
        ({"generators": ()}, "0 generators for 2 images"),
        ({"start": 4}, "starts at evaluation 4 of 4"),
        ({"known": KnownPicture(np.zeros((5, 4), np.float32), np.ones(1, np.float32))}, "known sample has the shape"),
        ({"output_channels": 2}, "as many channels as the sample"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], what: str) -> None:
    given = {"generators": [Generator(1)], **more}
    with pytest.raises(UsageError, match=what):
        sample(means, Schedule(ScheduleSpec(), "ddpm", 4), np.zeros(SHAPE, np.float32), **given)


def test_learned_variances_need_their_channels() -> None:
    schedule = Schedule(ScheduleSpec(variance="learned_range"), "ddpm", 4)
    with pytest.raises(UsageError, match="twice the channels, got 3 for samples of 3"):
        sample(means, schedule, np.zeros(SHAPE, np.float32), generators=[Generator(1)])


def test_gradients_are_for_some_rules_only() -> None:
    hooks = Hooks(gradient=lambda x, index, filled: filled.fill(0))
    with pytest.raises(UsageError, match="cannot follow a classifier's gradient"):
        sample(means, Schedule(ScheduleSpec(), "euler", 4), np.zeros(SHAPE, np.float32), hooks=hooks)


@pytest.mark.parametrize(
    "options",
    [{"guidance": -1}, {"guidance": math.nan}, {"guidance_rescale": 1.5}, {"guidance_interval": (0.6, 0.2)}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SampleOptions(**options)
