"""Sizes that the stages of a task allow together."""

from __future__ import annotations

from typing import Any

import pytest

from vlrt.diffusion.sizes import Sizes
from vlrt.diffusion_sections import ScheduleSpec, StageSpec
from vlrt.errors import BundleError, UsageError


def stage(name: str, *shape: int, **more: Any) -> StageSpec:
    return StageSpec(name, "denoiser", shape, ScheduleSpec(), "ddim", 5, **more)


LATENT = stage("latents", 4, 64, 64, factor=8, multiple=8)
PIXELS = stage("pixels", 3, 512, 512, multiple=8)
PRIOR = stage("prior", 768)
SMALL, LARGE = stage("small", 3, 64, 64, multiple=16), stage("large", 3, 256, 256, multiple=16)


def test_a_latent_stage() -> None:
    sizes = Sizes.of_result([LATENT], 1024)
    assert sizes.reference == (512, 512)
    assert sizes.check(512, 768) == (512, 768)
    assert sizes.shapes(512, 768) == {"latents": (4, 64, 96)}
    assert sizes.fit(700, 333) == (640, 320)
    assert sizes.fit(10, 20) == (64, 64)
    assert sizes.fit(4000, 2000) == (1024, 512)


def test_a_decoder_that_diffuses_follows_the_latents() -> None:
    sizes = Sizes.of_result([LATENT, PIXELS], 1024)
    assert sizes.shapes(256, 512) == {"latents": (4, 32, 64), "pixels": (3, 256, 512)}


def test_a_cascade_takes_what_all_its_stages_can_do() -> None:
    sizes = Sizes.of_result([PRIOR, SMALL, LARGE], 512)
    assert sizes.shapes(256, 320) == {"prior": (768,), "small": (3, 64, 80), "large": (3, 256, 320)}
    with pytest.raises(UsageError, match="a height of 272 pixels is not possible: multiples of 64 up to 512") as told:
        sizes.check(272, 256)
    assert told.value.hint == "--height 256 or 320"


def test_upscaling_is_measured_by_what_it_starts_from() -> None:
    upscaler = stage("upscaler", 4, 128, 128, factor=4, multiple=2)
    sizes = Sizes.of_source([upscaler], None, 512)
    assert sizes.reference == (128, 128)
    assert sizes.fit(101, 65) == (100, 64)
    assert sizes.shapes(100, 64) == {"upscaler": (4, 100, 64)}
    assert sizes.fit(200, 100) == (128, 64)  # 512 pixels in the end
    after = Sizes.of_source([LARGE], SMALL, 512)
    assert after.reference == (64, 64)
    assert after.shapes(*after.fit(70, 100)) == {"large": (3, 272, 400)}


def test_a_stage_of_one_size() -> None:
    sizes = Sizes.of_result([stage("pixels", 3, 32, 48)], 1024)
    assert sizes.fit(100, 100) == (32, 48)
    assert sizes.check(32, 48) == (32, 48)
    with pytest.raises(UsageError, match="the model has one size only") as told:
        sizes.check(32, 32)
    assert told.value.hint == "--width 48"


def test_an_embedding_alone_is_no_picture() -> None:
    with pytest.raises(BundleError, match="the last stage of the bundle makes no picture"):
        Sizes.of_result([PRIOR], 1024)
