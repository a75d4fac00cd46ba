"""`--scheduler` beside the pipeline's own: what diffusers' other schedulers make of the same configuration."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest

from vlrt.diffusion import Schedule
from vlrt.diffusion_sections import ScheduleSpec, StageSpec
from vlrt.errors import BundleError
from vlrt_export.diffusers_schedule import LATENT_RULES, read_schedule

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPARE = ("PNDMScheduler", BETAS | {"skip_prk_steps": True, "steps_offset": 1})
"""As Stable Diffusion 1.x is published: most is left to the scheduler's class."""
EXPLICIT = ("DDIMScheduler", BETAS | {"clip_sample": False, "timestep_spacing": "trailing", "set_alpha_to_one": False})


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("rule", LATENT_RULES)
@pytest.mark.parametrize(("kind", "config"), [SPARE, EXPLICIT], ids=["spare", "explicit"])
def test_another_scheduler_reads_the_configuration_as_diffusers_does(
    kind: str, config: dict[str, Any], rule: str
) -> None:
    sampling = read_schedule({"_class_name": kind, **config})
    further = tuple(name for name in LATENT_RULES if name != sampling.rule)
    schedules = sampling.schedules(further)
    stage = StageSpec("s", "d", (4, 8, 8), sampling.schedule, sampling.rule, 5, rules=further, schedules=schedules)
    given = getattr(diffusers, kind)(**config)
    reference = getattr(diffusers, CLASSES[rule]).from_config(given.config)
    reference.set_timesteps(7)
    found = Schedule(stage.schedule_of(rule), rule, 7)
    np.testing.assert_allclose(found.timesteps, reference.timesteps.numpy(), atol=1e-3)
    np.testing.assert_allclose(found.init_noise_sigma, float(reference.init_noise_sigma), rtol=1e-5)
    clips = reference.config.clip_sample_range if reference.config.get("clip_sample") else 0.0
    assert stage.schedule_of(rule).clip_sample == clips


def test_the_noise_of_the_training_stays() -> None:
    """Heun's class has betas of its own where a configuration has none."""
    found = read_schedule({"_class_name": "DDPMScheduler"}).schedules(("heun",))["heun"]
    assert (found.beta_start, found.beta_end, found.spacing) == (0.0001, 0.02, "linspace")


def test_a_schedule_for_no_rule_is_refused() -> None:
    with pytest.raises(BundleError, match="a schedule for `heun`, which is none of its rules"):
        StageSpec("s", "d", (4, 8, 8), ScheduleSpec(), "ddim", 5, schedules={"heun": ScheduleSpec()})
