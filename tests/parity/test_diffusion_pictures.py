"""Pictures in and out of diffusion stages, against torch and diffusers: resizing, tiles, photographs, masks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from vlrt.diffusion.denoiser import guidance_embedding
from vlrt.diffusion.embeddings import difference, slerp
from vlrt.diffusion.photographs import mask_of, pixels, to_picture
from vlrt.diffusion.resize import nearest, resize
from vlrt.diffusion.sources import Encoder, Posterior
from vlrt.diffusion.tiles import Tiling
from vlrt.diffusion_sections import DiffusionSpec, ScheduleSpec, StageSpec
from vlrt.engines import Sessions
from vlrt.errors import UsageError, VlrtError

MODES = {
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bilinear_aligned": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "bicubic_antialiased": {"mode": "bicubic", "align_corners": False, "antialias": True},
}


@pytest.mark.parametrize("size", [(32, 64), (26, 32), (7, 9), (1, 20), (13, 16)])
@pytest.mark.parametrize("kind", MODES)
def test_resizing_is_torchs(kind: str, size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).standard_normal((2, 3, 13, 16)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(array), size, **MODES[kind])
    found = resize(array, size, kind)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=5e-6)
    assert np.array_equal(nearest(array, size), torch.nn.functional.interpolate(torch.from_numpy(array), size).numpy())


def test_an_unknown_way_to_resize() -> None:
    with pytest.raises(VlrtError, match="`magic` is not a way to resize"):
        resize(np.zeros((1, 1, 2, 2), np.float32), (4, 4), "magic")


@pytest.fixture(scope="module")
def autoencoder() -> torch.nn.Module:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    torch.set_num_threads(1)
    made = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    ).eval()
    made.enable_tiling()
    return made


@pytest.mark.parametrize("size", [(19, 26), (8, 9), (20, 8)])
def test_tiles_are_blended_as_in_diffusers(autoencoder: torch.nn.Module, size: tuple[int, int]) -> None:
    latents = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1))

    def decode(tile: np.ndarray) -> np.ndarray:
        return autoencoder.decoder(autoencoder.post_quant_conv(torch.from_numpy(tile))).numpy()

    with torch.no_grad():
        expected = autoencoder.decode(latents).sample.numpy()
        found = Tiling(8, 16, 0.25).run(decode, latents.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_photographs_are_encoded_in_tiles_as_in_diffusers(autoencoder: torch.nn.Module) -> None:
    picture = torch.randn(1, 3, 38, 52, generator=torch.Generator().manual_seed(1))
    stage = StageSpec("latents", "unet", (4, 8, 8), ScheduleSpec(), "ddim", 5, factor=2, tile=8)

    class Chain(Sessions):
        def __init__(self) -> None:
            pass

        def run_chain(self, roles: object, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            moments = autoencoder.quant_conv(autoencoder.encoder(torch.from_numpy(arrays["picture"])))
            mean, log_variance = moments.chunk(2, dim=1)
            return {"latent_mean": mean.numpy(), "latent_std": torch.exp(log_variance / 2).numpy()}

    with torch.no_grad():
        expected = autoencoder.encode(picture).latent_dist
        found = Encoder(DiffusionSpec((stage,), encode=("latent_encoder",)), Chain(), tiled=True)(picture.numpy())
    np.testing.assert_allclose(found.mean, expected.mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.deviation, expected.std.numpy(), rtol=1e-4)


def test_latents_are_drawn_as_in_diffusers() -> None:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    moments = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = DiagonalGaussianDistribution(moments)
    drawn = expected.sample(torch.Generator().manual_seed(5)).numpy() * np.float32(0.18215)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5)).numpy()
    posterior = Posterior(expected.mean.numpy(), expected.std.numpy(), 0.18215)
    np.testing.assert_allclose(posterior.draw(lambda shape: noise.reshape(shape)), drawn, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 24), (24, 16), (40, 40)])
@pytest.mark.parametrize("resample", ["lanczos", "bicubic"])
def test_photographs_are_diffusers(
    photograph: Callable[..., Image.Image], size: tuple[int, int], resample: str
) -> None:
    from diffusers.image_processor import VaeImageProcessor

    picture = photograph(37, 29, seed=1)
    expected = VaeImageProcessor(vae_scale_factor=8, resample=resample).preprocess(picture, *size).numpy()
    assert np.array_equal(pixels(picture, size, resample), expected)


def test_masks_are_diffusers(photograph: Callable[..., Image.Image]) -> None:
    from diffusers.image_processor import VaeImageProcessor

    processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    picture, mask = photograph(37, 29, seed=1), photograph(37, 29, seed=2).convert("L")
    with pytest.warns(UserWarning, match="neither black nor white"):
        found = mask_of(mask, picture, (24, 32))
    assert np.array_equal(found, processor.preprocess(mask, 24, 32).numpy())
    assert 0 < found.mean() < 1


def test_finished_pictures_are_diffusers() -> None:
    from diffusers.image_processor import VaeImageProcessor

    array = np.random.default_rng(0).uniform(-1.3, 1.3, (3, 9, 7)).astype(np.float32)
    (expected,) = VaeImageProcessor().postprocess(torch.from_numpy(array[None]))
    assert np.array_equal(np.asarray(to_picture(array)), np.asarray(expected))


@pytest.mark.parametrize(("guidance", "width"), [(7.5, 256), (1.0, 8), (3.0, 9)])
def test_guidance_is_embedded_as_in_diffusers(guidance: float, width: int) -> None:
    from diffusers import StableDiffusionPipeline

    expected = StableDiffusionPipeline.get_guidance_scale_embedding(
        None, torch.tensor([guidance - 1]), embedding_dim=width
    )
    # An angle reaches thousands, so a frequency's last place shows in the fourth digit.
    np.testing.assert_allclose(guidance_embedding(guidance, width), expected.numpy(), atol=6e-4)


def test_slerp() -> None:
    """Ends, equal angles, and the length in between of vectors of one length."""
    start, end = np.array([[3.0, 0, 0]], np.float32), np.array([[0, 3.0, 0]], np.float32)
    assert np.array_equal(slerp(start, end, 0.0), start)
    np.testing.assert_allclose(slerp(start, end, 1.0), end, atol=1e-6)
    third = slerp(start, end, 1 / 3)
    np.testing.assert_allclose(third, [[3 * np.cos(np.pi / 6), 3 * np.sin(np.pi / 6), 0]], atol=1e-6)
    np.testing.assert_allclose(slerp(start, 2 * start, 0.5), 1.5 * start, atol=1e-6)
    np.testing.assert_allclose(slerp(0 * start, end, 0.5), 0.5 * np.sqrt(2) * end, atol=1e-5)


def test_the_difference_of_two_sentences() -> None:
    before, after = np.array([[1.0, 1]], np.float32), np.array([[4.0, 5]], np.float32)
    np.testing.assert_allclose(difference(before, after, 10.0), [[6, 8]], atol=1e-5)
    with pytest.raises(UsageError, match="mean the same"):
        difference(before, before, 1.0)
