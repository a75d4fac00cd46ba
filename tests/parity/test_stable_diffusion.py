"""Stable Diffusion against diffusers' pipelines on tiny random models: the same seed gives the same picture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import vlrt
from vlrt.bundle import Bundle
from vlrt.errors import VlrtError
from vlrt_export.picture_checks import LEAST, mask, photograph, psnr

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning", "ignore:.*deprecated.*"
)
PROMPT, NEGATIVE = "two dogs in the snow", "people, and a rather long list of other things"
Folders = tuple[Path, Path]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference(source: Path, kind: str = "StableDiffusionPipeline") -> Any:
    """Diffusers' pipeline as it loads the folder itself: our readers take no part in it."""
    unneeded = {} if "Upscale" in kind else {"safety_checker": None, "requires_safety_checker": False}
    made = getattr(diffusers, kind).from_pretrained(source, **unneeded)
    made.set_progress_bar_config(disable=True)
    return made


def expected(made: Any, seed: int, steps: int, **options: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(made(generator=generator, num_inference_steps=steps, **options).images[0])


def certificate(bundle: Bundle) -> dict[str, float]:
    return {line.stage: line.value for line in bundle.manifest.certificate}


def test_the_certificate_holds_every_rung(stable_diffusion: Folders) -> None:
    found = certificate(Bundle.open(stable_diffusion[1]))
    assert found["ids"] == 0
    for task in ("generate", "edit", "inpaint"):
        assert found[f"picture.{task}"] >= LEAST
    assert {"denoiser.prediction", "prompt_projection.prompt_key.*", "latent_encoder.latent_std"} <= set(found)


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("pndm", "PNDMScheduler"),
        ("ddim", "DDIMScheduler"),
        ("ddpm", "DDPMScheduler"),
        ("euler", "EulerDiscreteScheduler"),
        ("euler-ancestral", "EulerAncestralDiscreteScheduler"),
        ("heun", "HeunDiscreteScheduler"),
        ("dpm++2m", "DPMSolverMultistepScheduler"),
    ],
)
def test_words_to_pictures(stable_diffusion: Folders, rule: str, kind: str) -> None:
    source, bundle = stable_diffusion
    made = reference(source)
    made.scheduler = getattr(diffusers, kind).from_config(made.scheduler.config)
    options = {"guidance_scale": 7.5, "height": 16, "width": 24, "negative_prompt": NEGATIVE}
    wanted = expected(made, 3, 4, prompt=PROMPT, **options)
    painter = vlrt.load("generate", bundle)
    found = painter(PROMPT, seed=3, steps=4, negative=NEGATIVE, scheduler=rule, height=16, width=24)
    assert wanted.std() > 10
    assert psnr(found.pixels, wanted) >= LEAST


@pytest.mark.parametrize(("guidance", "kernels"), [(1.0, ""), (0.5, ""), (3.0, ""), (3.0, "always")])
def test_guidance(stable_diffusion: Folders, guidance: float, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLRT_KERNELS", kernels)  # these graphs are too small for ours to be prepared unasked
    source, bundle = stable_diffusion
    wanted = expected(reference(source), 5, 3, prompt=PROMPT, guidance_scale=guidance, height=16, width=16)
    found = vlrt.load("generate", bundle)(PROMPT, seed=5, steps=3, guidance=guidance, height=16, width=16)
    assert psnr(found.pixels, wanted) >= LEAST


def test_noise_on_the_way(stable_diffusion: Folders) -> None:
    source, bundle = stable_diffusion
    made = reference(source)
    made.scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config)
    wanted = expected(made, 5, 4, prompt=PROMPT, eta=0.6, height=16, width=16)
    found = vlrt.load("generate", bundle)(PROMPT, seed=5, steps=4, scheduler="ddim", eta=0.6, height=16, width=16)
    assert psnr(found.pixels, wanted) >= LEAST


def test_several_pictures_have_seeds_one_after_the_other(stable_diffusion: Folders) -> None:
    source, bundle = stable_diffusion
    made = reference(source)
    generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
    options = {"num_inference_steps": 3, "height": 16, "width": 16, "num_images_per_prompt": 2}
    wanted = made(PROMPT, generator=generators, **options).images
    found = vlrt.load("generate", bundle).batch(PROMPT, seed=11, count=2, steps=3, height=16, width=16)
    for painting, picture in zip(found, wanted, strict=True):
        assert psnr(painting.pixels, np.asarray(picture)) >= LEAST


def test_words_and_seeds_decide_the_picture(stable_diffusion: Folders) -> None:
    painter = vlrt.load("generate", stable_diffusion[1])
    options = {"steps": 3, "height": 16, "width": 16}
    first = painter(PROMPT, seed=1, **options).pixels
    assert np.array_equal(painter(PROMPT, seed=1, **options).pixels, first)
    for other in (painter("a red car", seed=1, **options), painter(PROMPT, seed=2, **options)):
        assert psnr(other.pixels, first) < 40


@pytest.mark.parametrize(("strength", "rule"), [(0.5, "pndm"), (0.9, "ddim"), (1.0, "euler")])
def test_photographs_are_edited(stable_diffusion: Folders, strength: float, rule: str) -> None:
    source, bundle = stable_diffusion
    made = reference(source, "StableDiffusionImg2ImgPipeline")
    kinds = {"ddim": "DDIMScheduler", "euler": "EulerDiscreteScheduler"}
    if rule in kinds:
        made.scheduler = getattr(diffusers, kinds[rule]).from_config(made.scheduler.config)
    picture = photograph(16, 24)
    wanted = expected(made, 9, 5, prompt=PROMPT, image=picture, strength=strength)
    found = vlrt.load("edit", bundle)(picture, PROMPT, seed=9, steps=5, strength=strength, scheduler=rule)
    assert psnr(found.pixels, wanted) >= LEAST


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_masks_are_blended(stable_diffusion: Folders, strength: float) -> None:
    source, bundle = stable_diffusion
    made = reference(source, "StableDiffusionInpaintPipeline")
    picture, covered = photograph(16, 24), mask(16, 24)
    sizes = {"height": 16, "width": 24, "strength": strength}
    wanted = expected(made, 4, 5, prompt=PROMPT, image=picture, mask_image=covered, **sizes)
    found = vlrt.load("inpaint", bundle)(picture, covered, PROMPT, seed=4, steps=5, strength=strength)
    assert psnr(found.pixels, wanted) >= LEAST


def test_large_pictures_in_tiles(stable_diffusion: Folders) -> None:
    source, bundle = stable_diffusion
    made = reference(source)
    made.vae.enable_tiling()
    wanted = expected(made, 2, 2, prompt=PROMPT, height=40, width=32)
    plain, tiled = (
        vlrt.load("generate", bundle)(PROMPT, seed=2, steps=2, height=40, width=32, tiled=tiled)
        for tiled in (False, True)
    )
    assert psnr(tiled.pixels, wanted) >= LEAST
    assert psnr(plain.pixels, wanted) < LEAST


def test_the_preview_is_like_the_picture(stable_diffusion: Folders) -> None:
    seen: list[Image.Image] = []
    painter = vlrt.load("generate", stable_diffusion[1])
    painting = painter(PROMPT, seed=6, steps=3, height=32, width=32, on_step=lambda step: seen.append(step.preview()))
    small = np.asarray(painting.picture.resize(seen[-1].size, Image.Resampling.BOX), dtype=np.float64)
    likeness = np.corrcoef(np.asarray(seen[-1], dtype=np.float64).ravel(), small.ravel())[0, 1]
    assert likeness > 0.2


@pytest.fixture(scope="module")
def variant(
    diffusers_folders: ModuleType, stable_diffusion: Folders, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Bundle]]:
    """Exports a pipeline around another UNet; text encoder and autoencoder are those of `stable_diffusion`."""
    known = Bundle.open(stable_diffusion[1])

    def make(scheduler: Any = None, **changes: Any) -> tuple[Path, Bundle]:
        folder = tmp_path_factory.mktemp("variant")
        unet = diffusers_folders.unet(**(diffusers_folders.ONE_LEVEL | changes))
        diffusers_folders.write_stable_diffusion(folder / "source", unet, scheduler)
        made = diffusers_folders.export("stable-diffusion", folder / "source", folder / "bundle", known=known)
        return folder / "source", made

    return make


def test_inpainting_with_nine_channels(variant: Callable[..., tuple[Path, Bundle]]) -> None:
    source, bundle = variant(in_channels=9)
    assert bundle.manifest.tasks == ("inpaint",)
    made = reference(source, "StableDiffusionInpaintPipeline")
    picture, covered = photograph(24, 16), mask(24, 16)
    for strength in (1.0, 0.5):
        sizes = {"height": 24, "width": 16, "strength": strength}
        wanted = expected(made, 8, 4, prompt=PROMPT, image=picture, mask_image=covered, **sizes)
        found = vlrt.load("inpaint", bundle.path)(picture, covered, PROMPT, seed=8, steps=4, strength=strength)
        assert psnr(found.pixels, wanted) >= LEAST


def test_upscaling(variant: Callable[..., tuple[Path, Bundle]], diffusers_folders: ModuleType) -> None:
    velocity = diffusers_folders.scheduler("DDIMScheduler", prediction_type="v_prediction", clip_sample=False)
    source, bundle = variant(velocity, in_channels=7, num_class_embeds=50, use_linear_projection=True)
    assert bundle.manifest.tasks == ("upscale",)
    picture = photograph(8, 12)
    made = reference(source, "StableDiffusionUpscalePipeline")
    wanted = expected(made, 1, 4, prompt=PROMPT, image=picture, noise_level=20, guidance_scale=9.0)
    found = vlrt.load("upscale", bundle.path)(picture, PROMPT, seed=1, steps=4)
    assert found.pixels.shape == (16, 24, 3)  # this autoencoder doubles
    assert psnr(found.pixels, wanted) >= LEAST


def test_latent_consistency(variant: Callable[..., tuple[Path, Bundle]], diffusers_folders: ModuleType) -> None:
    source, bundle = variant(diffusers_folders.scheduler("LCMScheduler"), time_cond_proj_dim=16)
    spec = bundle.manifest.diffusion
    assert spec is not None
    assert (spec.stages[0].rule, spec.stages[0].steps, spec.stages[0].guidance_width) == ("lcm", 4, 16)
    made = reference(source)
    for guidance in (8.5, 3.0):
        wanted = expected(made, 1, 4, prompt=PROMPT, guidance_scale=guidance, height=16, width=16)
        found = vlrt.load("generate", bundle.path)(PROMPT, seed=1, guidance=guidance, height=16, width=16)
        assert psnr(found.pixels, wanted) >= LEAST


def test_what_cannot_be_exported_says_so(
    stable_diffusion: Folders, tmp_path: Path, diffusers_folders: ModuleType
) -> None:
    def damaged(name: str, **changes: Any) -> Path:
        folder = Path(shutil.copytree(stable_diffusion[0], tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"))
        for file in (folder / name).glob("*config.json"):
            file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes), "utf-8")
        return folder

    cases = [
        (damaged("scheduler", _class_name="VQDiffusionScheduler"), "`VQDiffusionScheduler`, which no rule here"),
        (damaged("scheduler", use_karras_sigmas=True, use_beta_sigmas=True), "`use_beta_sigmas` True"),
        (damaged("scheduler", prediction_type="flow"), "predicts `flow`"),
        (damaged("unet", in_channels=6), "`conv_in.weight` of `.*` has shape"),
        (damaged("text_encoder", hidden_act="relu"), "the activation `relu`"),
    ]
    without = damaged("vae")
    shutil.rmtree(without / "vae")
    cases.append((without, "has no component `vae`"))
    for folder, message in cases:
        with pytest.raises(VlrtError, match=message):
            diffusers_folders.export("stable-diffusion", folder, tmp_path / "never")
    with pytest.raises(VlrtError, match=r"has no model_index\.json"):
        diffusers_folders.export("stable-diffusion", stable_diffusion[0] / "unet", tmp_path / "never")
    assert not (tmp_path / "never").exists()
