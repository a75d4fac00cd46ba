"""Diffusion sampling: schedules and update rules, guidance, the sampling loop, and the stages built upon it."""

from vlrt.diffusion.generator import Generator, randn
from vlrt.diffusion.options import SampleOptions
from vlrt.diffusion.sample import Hooks, KnownPicture, Loop, StepBuffers, StepDone, sample
from vlrt.diffusion.schedule import Schedule, add_noise

__all__ = [
    "Generator",
    "Hooks",
    "KnownPicture",
    "Loop",
    "SampleOptions",
    "Schedule",
    "StepBuffers",
    "StepDone",
    "add_noise",
    "randn",
    "sample",
]
