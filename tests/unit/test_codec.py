"""A bundle's codec: sizes that are whole codes, codes that are in the codebook, and the manifest that says both."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlrt.bundle import Bundle
from vlrt.codec import PictureCodec, PictureCutWarning, as_pictures
from vlrt.errors import BundleError, ImageError, UsageError
from vlrt.manifest import CodecSpec, ImageTokensSpec, dump, parse
from vlrt.tasks.detokenize import Detokenizer
from vlrt.tasks.reconstruct import Reconstructor
from vlrt.tasks.tokenize import Tokenizer
from vlrt.token_grid import TokenGrid
from vlrt.verify import verify


@pytest.fixture(scope="module")
def bundle(small_codec: Path) -> Bundle:
    return Bundle.open(small_codec)


def codec_of(bundle: Bundle, **change: Any) -> PictureCodec:
    """The codec of a bundle whose manifest says something else of it."""
    assert bundle.manifest.codec is not None
    changed = replace(bundle.manifest, codec=replace(bundle.manifest.codec, **change))
    return PictureCodec(Bundle(bundle.path, changed))


def picture(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def test_photographs_keep_their_size_less_what_is_no_whole_code(bundle: Bundle) -> None:
    codec = PictureCodec(bundle)
    whole = picture(16, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert codec.fit(whole) is whole
    with pytest.warns(PictureCutWarning, match="19x14 pixels was cut to 16x12: codes are 4x4"):
        cut = codec.fit(picture(19, 14))
    np.testing.assert_array_equal(np.asarray(cut), np.asarray(picture(19, 14))[1:13, 1:17])


def test_a_trained_size_is_covered_and_cut(bundle: Bundle) -> None:
    codec = codec_of(bundle, grid=(4, 6))
    assert codec.fit(picture(100, 31)).size == (24, 16)
    assert codec.fit(picture(7, 90)).size == (24, 16)
    assert codec.fit(picture(100, 31), (8, 12)).size == (12, 8)
    halved = codec.fit(Image.new("RGB", (48, 64), (10, 20, 30)))
    assert np.asarray(halved).reshape(-1, 3).tolist() == [[10, 20, 30]] * (24 * 16)


@pytest.mark.parametrize(("size", "near"), [((10, 12), "8 or 12"), ((12, 15), "12 or 16"), ((3, 4), "give 4$")])
def test_sizes_that_are_no_whole_codes_name_the_nearest(bundle: Bundle, size: tuple[int, int], near: str) -> None:
    with pytest.raises(UsageError, match="no whole codes of 4 pixels") as found:
        PictureCodec(bundle).fit(picture(40, 40), size)
    assert found.match(near)


def test_pictures_too_small_and_too_large(bundle: Bundle) -> None:
    codec = PictureCodec(bundle)
    with pytest.raises(ImageError, match="3x50 pixels is smaller than a code of 4x4"):
        codec.fit(picture(3, 50))
    with pytest.raises(ImageError, match="more than 65,536 codes"):
        codec.fit(Image.new("RGB", (2000, 1000)))
    with pytest.raises(UsageError, match="more than 65,536 codes"):
        codec.fit(picture(8, 8), (4096, 4096))


def test_graphs_of_one_size_take_no_other(bundle: Bundle) -> None:
    codec = codec_of(bundle, grid=(2, 3), fixed=True)
    assert codec.encode([codec.fit(picture(30, 30))]).shape == (1, 2, 3)
    with pytest.raises(UsageError, match="takes pictures of 8x12 pixels, got 16x16"):
        codec.fit(picture(30, 30), (16, 16))
    with pytest.raises(UsageError, match="takes grids of 2 x 3 codes, got 3 x 2"):
        codec.decode(np.zeros((1, 3, 2), np.int64))


def test_codes_and_pictures_go_both_ways(bundle: Bundle) -> None:
    codec = PictureCodec(bundle)
    pair = [picture(16, 12), picture(16, 12).rotate(180)]
    codes = codec.encode(pair)
    assert codes.shape == (2, 3, 4)
    assert codes.dtype == np.int64
    np.testing.assert_array_equal(codes[1], codec.encode(pair[1:])[0])
    pixels = codec.decode(codes)
    assert pixels.shape == (2, 3, 12, 16)
    assert 0 <= pixels.min() <= pixels.max() <= 1
    shown = codec.pictures(codes)
    np.testing.assert_array_equal(np.asarray(shown[1]), np.rint(pixels[1] * 255).transpose(1, 2, 0))
    np.testing.assert_array_equal(np.asarray(as_pictures(codec.pixels(pair))[0]), np.asarray(pair[0]))


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (np.full((1, 2, 2), 16), "the code 16 is outside the codebook of 16"),
        (np.array([[[0, -1]]]), "the code -1 is outside"),
        (np.zeros((2, 2), np.int64), r"shape \[2, 2\]"),
        (np.zeros((1, 0, 2), np.int64), "are no grid"),
        (np.zeros((1, 2, 2)), "dtype `float64`"),
        (np.zeros((1, 300, 300), np.int64), "300 x 300 codes is too large"),
    ],
)
def test_codes_that_the_codec_does_not_have(bundle: Bundle, codes: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PictureCodec(bundle).decode(codes)


def test_half_codecs_and_other_bundles_say_what_they_lack(bundle: Bundle, tiny_bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="has no tokenizer: it turns codes into pictures only"):
        codec_of(bundle, tokenizer="").encode([picture(8, 8)])
    with pytest.raises(BundleError, match="has no detokenizer"):
        codec_of(bundle, detokenizer="").decode(np.zeros((1, 2, 2), np.int64))
    with pytest.raises(BundleError, match="has no codec of pictures"):
        PictureCodec(Bundle.open(tiny_bundle_folder))


def test_the_tasks(bundle: Bundle) -> None:
    photograph = np.asarray(picture(16, 12))
    grid = Tokenizer(bundle)(photograph)
    assert (grid.codebook, grid.factor, grid.model, grid.codes.shape) == (16, 4, "small-codec", (3, 4))
    painted = Detokenizer(bundle)(grid)
    found = Reconstructor(bundle)(photograph)
    np.testing.assert_array_equal(np.asarray(found.picture), np.asarray(painted))
    np.testing.assert_array_equal(found.grid.codes, grid.codes)
    gap = (np.asarray(painted, float) - photograph) / 255
    assert found.mse == pytest.approx(np.square(gap).mean(), abs=1e-3)
    assert found.psnr == pytest.approx(-10 * np.log10(found.mse))
    with pytest.raises(UsageError, match="made by `other` with a codebook of 99, `small-codec` has 16"):
        Detokenizer(bundle)(TokenGrid(grid.codes, 99, 4, "other"))


def test_a_bundle_s_goldens_are_verified_without_torch(bundle: Bundle) -> None:
    measured = {m.stage: m for m in verify(bundle)}
    assert set(measured) == {"codes", "codec.pixels"}
    assert all(m.passed for m in measured.values())


SPEC = CodecSpec(16, 4, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"codebook": 0},
        {"width": 0},
        {"factor": 0},
        {"factor": 1000},
        {"tokenizer": "", "detokenizer": ""},
        {"fixed": True},
        {"most_codes": 0},
        {"grid": (0, 4)},
        {"grid": (4096, 4096)},
    ],
)
def test_codec_sections_that_cannot_be_meant(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="codec section"):
        replace(SPEC, **change)


def test_a_manifest_with_a_codec_is_read_as_written(bundle: Bundle) -> None:
    manifest = replace(bundle.manifest, codec=replace(SPEC, grid=(2, 3), fixed=True))
    assert parse(dump(manifest)) == manifest
    with pytest.raises(BundleError, match="names the graph `painter`"):
        replace(manifest, codec=replace(SPEC, detokenizer="painter"))
    with pytest.raises(BundleError, match="comes from nowhere"):
        replace(manifest, codec=replace(SPEC, pixels="photograph"))


def test_image_tokens_need_a_codec_that_fits(bundle: Bundle) -> None:
    for drawn, words in (
        (ImageTokensSpec((2, 3), 16), "needs a decode section and a codec"),
        (ImageTokensSpec((2, 3), 16, text="encoder"), "needs a decode section and a codec"),
    ):
        with pytest.raises(BundleError, match=words):
            replace(bundle.manifest, image_tokens=drawn)
    with pytest.raises(BundleError, match="image tokens section"):
        ImageTokensSpec((0, 3), 16)
    with pytest.raises(BundleError, match="cannot be meant"):
        ImageTokensSpec((2, 3), 0)
