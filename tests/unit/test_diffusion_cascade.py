"""The cascade executor on tiny bundles: what changes a picture, what must not, and what is loaded when."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlrt import load
from vlrt.diffusion.request import CancelledError, PaintStep
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.errors import EngineError, ImageError, UsageError
from vlrt.tasks.generate import Painter
from vlrt.text import TextTruncatedWarning


@pytest.fixture(scope="module")
def painter(latent_bundle: Path) -> Painter:
    return load("generate", latent_bundle)  # type: ignore[no-any-return]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every denoiser that is bound from now on."""
    found: list[int] = []
    bind = OnnxRuntimeSession.bind

    def seen(self: OnnxRuntimeSession, inputs: Any, outputs: Any) -> Callable[[], None]:
        found.append(len(inputs["sample"]))
        return bind(self, inputs, outputs)

    monkeypatch.setattr(OnnxRuntimeSession, "bind", seen)
    return found


def far(one: Any, other: Any) -> float:
    return float(np.abs(one.pixels.astype(int) - other.pixels).mean())


def test_a_seed_gives_a_picture_and_a_prompt_another(painter: Painter) -> None:
    first = painter("a red dog", seed=1)
    assert first.pixels.shape == (16, 16, 3)
    assert first.pixels.dtype == np.uint8
    assert first.pixels.std() > 5
    assert far(first, painter("a red dog", seed=1)) == 0
    assert far(first, painter("a red dog", seed=2)) > 5
    assert far(first, painter("the cat runs", seed=1)) > 5
    assert far(first, painter("a red dog", seed=1, negative="the cat")) > 1


def test_further_pictures_have_the_seeds_after(painter: Painter) -> None:
    found = painter.batch("a dog", seed=4, count=3)
    assert [one.seed for one in found] == [4, 5, 6]
    assert far(found[2], painter("a dog", seed=6)) == 0


def test_an_absent_seed_is_drawn_and_told(painter: Painter) -> None:
    found = painter("a dog")
    assert far(found, painter("a dog", seed=found.seed)) == 0


def test_guidance_up_to_one_is_one_evaluation(painter: Painter, rows: list[int]) -> None:
    plain = painter("a dog", seed=1, guidance=1.0)
    assert rows == [1]
    assert far(plain, painter("a dog", seed=1, guidance=0.5, negative="a cat")) == 0
    painter("a dog", seed=1)
    assert rows == [1, 1, 2]


def test_two_passes_give_the_same_picture(painter: Painter, rows: list[int]) -> None:
    together, apart = painter("a dog", seed=1), painter("a dog", seed=1, two_pass=True)
    assert rows == [2, 1, 1]
    assert np.abs(together.pixels.astype(int) - apart.pixels).max() <= 1


def test_guidance_on_an_interval(painter: Painter, rows: list[int]) -> None:
    found = painter("a dog", seed=1, guidance_interval=(0.3, 0.7))
    assert sorted(rows) == [1, 2]
    assert far(found, painter("a dog", seed=1)) > 0.5


def test_keeping_loaded_changes_nothing(latent_bundle: Path, painter: Painter) -> None:
    kept = load("generate", latent_bundle, keep_loaded=True)
    assert far(kept("a dog", seed=1), painter("a dog", seed=1)) == 0
    assert set(kept.cascade.sessions._loading) >= {"unet", "latent_decoder"}
    assert not painter.cascade.sessions._loading


@pytest.mark.parametrize("keep_loaded", [True, False])
def test_threads_may_share_a_painter(latent_bundle: Path, painter: Painter, keep_loaded: bool) -> None:
    shared = load("generate", latent_bundle, keep_loaded=keep_loaded, threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: shared("a dog", seed=seed), range(8)))
    assert all(far(one, painter("a dog", seed=seed)) == 0 for seed, one in enumerate(found))


def test_stages_are_loaded_one_after_the_other(cascade_bundle: Path) -> None:
    painter = load("generate", cascade_bundle)
    seen: dict[str, set[str]] = {}
    painter("a dog", seed=1, on_step=lambda step: seen.setdefault(step.stage, set(painter.cascade.sessions._loading)))
    assert seen == {
        "prior": {"prior"},
        "decoder": {"decoder"},
        "upsampler": {"upsampler", "upsampler_last"},
    }


def test_what_is_unloaded_is_gone(cascade_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector: nothing holds a session in a circle."""
    alive: list[weakref.ref[object]] = []
    load_graph = OnnxRuntimeSession.__init__

    def counted(self: OnnxRuntimeSession, *arguments: Any) -> None:
        load_graph(self, *arguments)
        alive.append(weakref.ref(self))

    monkeypatch.setattr(OnnxRuntimeSession, "__init__", counted)
    gc.disable()
    try:
        load("generate", cascade_bundle)("a dog", seed=1, on_step=lambda step: step.preview())
        assert len(alive) >= 5
        assert not [one for one in alive if one() is not None]
    finally:
        gc.enable()


def test_steps_are_told(cascade_bundle: Path) -> None:
    steps: list[PaintStep] = []
    load("generate", cascade_bundle).batch("a dog", seed=1, count=2, on_step=steps.append)
    told = [(s.stage, s.picture, s.step, s.steps) for s in steps]
    assert told[:5] == [("prior", 0, i, 4) for i in range(1, 5)] + [("prior", 1, 1, 4)]
    assert told[-1] == ("upsampler", 1, 3, 3)
    assert {s.pictures for s in steps} == {2}


def test_previews(latent_bundle: Path, cascade_bundle: Path) -> None:
    small: list[Image.Image | None] = []
    load("generate", latent_bundle)("a dog", seed=1, on_step=lambda step: small.append(step.preview()))
    assert [one.size for one in small if one] == [(8, 8)] * 6
    kinds: dict[str, bool] = {}
    load("generate", cascade_bundle)("a dog", on_step=lambda s: kinds.setdefault(s.stage, s.preview() is not None))
    assert kinds == {"prior": False, "decoder": True, "upsampler": True}


def test_cancelling_leaves_nothing(painter: Painter) -> None:
    asked: list[int] = []
    with pytest.raises(CancelledError, match="stopped in the stage `latents`"):
        painter("a dog", seed=1, should_cancel=lambda: asked.append(1) or len(asked) > 3)
    assert len(asked) == 4
    assert not painter.cascade.sessions._loading


def test_nan_names_stage_and_step(tiny_diffusion: ModuleType, tmp_path: Path) -> None:
    painter = load("generate", tiny_diffusion.latent(tmp_path / "broken", broken=True))
    # Six steps visit 831, 665, 499, …
    with pytest.raises(EngineError, match=r"`latents` stopped at step 3 of 6 \(timestep 499\)"):
        painter("a dog", seed=1, steps=6)


def test_an_empty_prompt_is_a_prompt(painter: Painter) -> None:
    assert far(painter("", seed=1), painter("  ", seed=1)) == 0


def test_a_long_prompt_is_cut_and_its_end_told(painter: Painter) -> None:
    with pytest.warns(TextTruncatedWarning, match="the model reads 6; the rest was cut: `the red car`") as told:
        cut = painter("a dog runs on the child the red car", seed=1)
    assert len(told) == 1
    assert far(cut, painter("a dog runs on the child", seed=1)) == 0


def test_sizes(painter: Painter) -> None:
    assert painter("a dog", seed=1, height=8, width=24).pixels.shape == (8, 24, 3)
    with pytest.raises(UsageError, match="a height of 15 pixels is not possible: multiples of 4 up to 64 are") as told:
        painter("a dog", height=15)
    assert told.value.hint == "--height 12 or 16"
    with pytest.raises(UsageError, match="a width of 400 pixels") as told:
        painter("a dog", width=400)
    assert told.value.hint == "--width 64"


def test_a_cascade_of_one_size(cascade_bundle: Path) -> None:
    with pytest.raises(UsageError, match="the model has one size only") as told:
        load("generate", cascade_bundle)("a dog", height=32)
    assert told.value.hint == "--height 16"


def test_large_pictures_are_decoded_in_tiles(painter: Painter) -> None:
    whole = painter("a dog", seed=1, height=64, width=64, tiled=False)
    tiled = painter("a dog", seed=1, height=64, width=64)
    assert far(tiled, painter("a dog", seed=1, height=64, width=64, tiled=True)) == 0
    assert 0 < far(whole, tiled) < 15
    assert far(painter("a dog", seed=1), painter("a dog", seed=1, tiled=True)) == 0


@pytest.fixture
def picture(photograph: Callable[..., Image.Image]) -> Image.Image:
    return photograph(24, 16, seed=3)


class TestPhotographs:
    """Tasks that start from a photograph."""

    def test_strength_decides_what_is_left(self, latent_bundle: Path, picture: Image.Image) -> None:
        editor = load("edit", latent_bundle)
        steps: list[PaintStep] = []
        editor(picture, "a dog", seed=1, strength=0.5, on_step=steps.append)
        assert [(s.step, s.steps) for s in steps] == [(1, 3), (2, 3), (3, 3)]
        strong, weak = (editor(picture, "a dog", seed=1, strength=s) for s in (1.0, 0.2))
        other = editor(picture.rotate(180), "a dog", seed=1, strength=0.2)
        assert far(weak, strong) > 1
        assert far(weak, other) > 1
        with pytest.raises(UsageError, match=r"a strength of 0\.1 leaves none of the 6 steps to do"):
            editor(picture, "a dog", strength=0.1)

    def test_odd_photographs_are_rounded_and_that_is_said(
        self, latent_bundle: Path, photograph: Callable[..., Image.Image]
    ) -> None:
        editor = load("edit", latent_bundle)
        with pytest.warns(UserWarning, match="photograph of 27x17 pixels was resized to 24x16"):
            assert editor(photograph(27, 17), "a dog", seed=1).pixels.shape == (16, 24, 3)
        with pytest.warns(UserWarning, match="photograph of 200x100 pixels was resized to 64x32"):
            editor(photograph(200, 100), "a dog", seed=1)
        assert editor(photograph(27, 17), "a dog", seed=1, height=16, width=16).pixels.shape == (16, 16, 3)

    def test_what_a_mask_keeps_is_kept(self, latent_bundle: Path, picture: Image.Image) -> None:
        inpainter = load("inpaint", latent_bundle)
        mask = np.zeros((16, 24), np.uint8)
        mask[:, 12:] = 255
        found = [inpainter(picture, Image.fromarray(mask), text, seed=1).pixels for text in ("a dog", "the red car")]
        # The encoder's draw is of the seed alone, so what is kept differs by the decoder's neighbourhood only.
        assert np.abs(found[0][:, :10].astype(int) - found[1][:, :10]).max() == 0
        assert np.abs(found[0][:, 14:].astype(int) - found[1][:, 14:]).mean() > 3

    def test_masks_that_do_not_fit(self, latent_bundle: Path, picture: Image.Image) -> None:
        inpainter = load("inpaint", latent_bundle)
        with pytest.raises(ImageError, match="the mask has 16x24 pixels, the photograph 24x16"):
            inpainter(picture, picture.transpose(Image.Transpose.ROTATE_90), "a dog")
        grey = np.zeros((16, 24), np.uint8)
        grey[:, 12:], grey[0, 0], grey[1, 1] = 255, 127, 128
        with pytest.warns(UserWarning, match="2 pixels of the mask are neither black nor white"):
            inpainter(picture, Image.fromarray(grey), "a dog", seed=1)

    def test_inpainting_by_channels(self, tiny_diffusion: ModuleType, tmp_path: Path, picture: Image.Image) -> None:
        inpainter = load("inpaint", tiny_diffusion.latent(tmp_path / "channels", "channels"))
        white, black = (Image.new("L", (24, 16), value) for value in (255, 0))
        assert far(*(inpainter(picture, mask, "a dog", seed=1) for mask in (white, black))) > 1
        assert far(*(inpainter(picture, white, "a dog", seed=1, strength=s) for s in (1.0, 0.7))) > 1

    def test_variations_follow_the_photograph(self, cascade_bundle: Path, picture: Image.Image) -> None:
        varier = load("variations", cascade_bundle)
        plain = varier(picture, seed=1)
        assert far(plain, varier(Image.new("RGB", (8, 8), (250, 10, 10)), seed=1)) > 1
        moved = [varier(picture, seed=1, source="a dog", target="the cat", theta=theta) for theta in (0.0, 0.9)]
        assert far(plain, moved[0]) == 0
        assert far(plain, moved[1]) > 1
        for options, words in (
            ({"source": "a dog"}, "needs two sentences"),
            ({"source": "a dog", "target": "a dog"}, "mean the same"),
            ({"theta": 1.5}, "expected 0 to 1"),
        ):
            with pytest.raises(UsageError, match=words):
                varier(picture, **options)

    def test_interpolation_ends_at_both_photographs(self, cascade_bundle: Path, picture: Image.Image) -> None:
        other = Image.new("RGB", (8, 8), (250, 10, 10))
        frames = load("interpolate", cascade_bundle)(picture, other, frames=4, seed=1)
        varier = load("variations", cascade_bundle)
        assert far(frames[0], varier(picture, seed=1)) == 0
        assert far(frames[-1], varier(other, seed=1)) <= 0.02
        assert far(frames[1], frames[0]) > 0
        with pytest.raises(UsageError, match="`frames` is 1"):
            load("interpolate", cascade_bundle)(picture, other, frames=1)

    def test_upscaling(self, cascade_bundle: Path, photograph: Callable[..., Image.Image]) -> None:
        upscaler = load("upscale", cascade_bundle)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = upscaler(photograph(8, 8, seed=1), seed=1)
        assert found.pixels.shape == (16, 16, 3)
        assert far(found, upscaler(photograph(8, 8, seed=2), seed=1)) > 1
        with pytest.raises(UsageError, match="follows from the photograph's"):
            upscaler(photograph(8, 8), height=32)


def test_classes(classes_bundle: Path) -> None:
    painter = load("generate", classes_bundle)
    assert far(painter(label="car", seed=1), painter(label=2, seed=1)) == 0
    assert far(painter(label="car", seed=1), painter(label="1", seed=1)) > 1
    for label, words in ((None, "none was named"), ("cow", "there is no class `cow`"), (5, "a number below 5")):
        with pytest.raises(UsageError) as told:
            painter(label=label)
        assert words in str(told.value)
    with pytest.raises(UsageError, match="reads no prompt"):
        painter("a dog", label=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "0 steps of the stage `latents` are not possible: it was trained with 1000"),
        ({"steps": 1001}, "1001 steps"),
        ({"seed": 2**64}, "does not fit 64 bits"),
        ({"seed": -1}, "does not fit 64 bits"),
        ({"seed": 2**64 - 1, "count": 2}, "does not fit 64 bits"),
        ({"count": 0}, "expected 1 to 1024"),
        ({"strength": 1.5}, "`strength` is 1.5"),
        ({"strength": 0.0}, "`strength` is 0.0"),
        ({"eta": 2.0}, "`eta` is 2.0"),
        ({"guidance_rescale": 2.0}, "`guidance_rescale` is 2.0"),
        ({"guidance_interval": (0.8, 0.2)}, "cannot be"),
        ({"scheduler": "heun"}, "cannot be sampled with `heun`"),
        ({"scheduler": "magic"}, "there is no such rule"),
        ({"steps": {"base": 3}}, "names the stage `base`"),
        ({"label": 1}, "knows no classes"),
        ({"stepps": 3}, "there is no option `stepps`"),
    ],
)
def test_what_cannot_be_meant(painter: Painter, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as told:
        painter.batch("a dog", **options)
    assert words in str(told.value)


def test_the_largest_seed_is_one(painter: Painter) -> None:
    assert painter("a dog", seed=2**64 - 1).seed == 2**64 - 1


def test_options_by_stage(cascade_bundle: Path) -> None:
    found = load("generate", cascade_bundle)("a dog", seed=1, steps={"decoder": 2}, guidance=4.0, scheduler="ddim")
    assert found.parameters["steps"] == {"prior": 4, "decoder": 2, "upsampler": 3}
    assert found.parameters["guidance"] == {"prior": 4.0, "decoder": 4.0, "upsampler": 1.0}
    assert found.parameters["scheduler"] == {"prior": "unclip", "decoder": "ddim", "upsampler": "ddim"}


@pytest.mark.parametrize(("times", "passes"), [(2.9, [1, 1]), (3.1, [2]), (None, [2])])
def test_short_memory_asks_for_two_passes(
    latent_bundle: Path,
    painter: Painter,
    rows: list[int],
    monkeypatch: pytest.MonkeyPatch,
    times: Any,
    passes: list[int],
) -> None:
    weights = (latent_bundle / "unet.onnx").stat().st_size
    monkeypatch.setattr("vlrt.diffusion.stages.available", lambda: None if times is None else int(times * weights))
    found = painter("a dog", seed=1)
    assert rows == passes
    assert found.parameters.get("two_pass", False) == (len(passes) == 2)
    rows.clear()
    painter("a dog", seed=1, two_pass=False)
    assert rows == [2]
