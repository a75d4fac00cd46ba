"""Codecs of pictures against their references: goldens of two packages, diffusers, and the real VQ-VAE."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlrt.bundle import Bundle
from vlrt.codec import PictureCodec
from vlrt.errors import VlrtError
from vlrt.image import load
from vlrt.verify import verify
from vlrt.zoo import Entry
from vlrt_export import weight_layout
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.codec_checks import measure_codes, pictures
from vlrt_export.codec_reader import open_image_codec, read_image_codec
from vlrt_export.dvae_checkpoint import decoder_layout, encoder_layout, random_dvae
from vlrt_export.families import dvae as dvae_family
from vlrt_export.families import vq_vae as vq_vae_family
from vlrt_export.families import vqgan as vqgan_family
from vlrt_export.modules.dvae import DvaeSizes
from vlrt_export.modules.image_codec import ImageTokenizer
from vlrt_export.modules.vqgan import VqGanSizes
from vlrt_export.request import Request
from vlrt_export.vq_vae_checkpoint import plain_vq_vae, random_vq_vae
from vlrt_export.vqgan_checkpoint import load_vqgan, random_vqgan

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SMALL = {"hidden": 8, "residual": 4, "blocks": 1, "width": 4, "codebook": 16}
"""Of the bundle `small-codec`."""


def request(family: str, source: Path | str) -> Request:
    return Request("tiny", Entry(family, ("tokenize",), ""), str(source))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dvae_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    target = tmp_path_factory.mktemp("dvae") / "tiny"
    write_bundle(dvae_family.build(request("dvae", GOLDEN / "dvae")), target)
    return Bundle.open(target)


def npz(path: Path) -> dict[str, Any]:
    with np.load(path) as every:
        return {name: every[name] for name in every.files}


def test_pickled_dvae_modules_are_read_without_running_them() -> None:
    expected, codec = npz(GOLDEN / "dvae" / "expected.npz"), open_image_codec(GOLDEN / "dvae")
    assert (codec.kind, codec.codebook, codec.factor, codec.grid) == ("dvae", 40, 8, (32, 32))
    assert codec.tokenizer is not None
    with torch.no_grad():
        logits = codec.tokenizer.scores(torch.from_numpy(expected["pixels"]))
        painted = codec.detokenizer(torch.from_numpy(expected["codes"]))
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-6)
    np.testing.assert_allclose(painted, expected["painted"], atol=1e-6)


def test_the_dvae_bundle_gives_the_reference_s_codes_and_pictures(dvae_bundle: Bundle) -> None:
    expected, codec = npz(GOLDEN / "dvae" / "expected.npz"), PictureCodec(dvae_bundle)
    assert len(np.unique(expected["codes"])) > 8
    found = codec.sessions.run_chain(("image_tokenizer",), {"pixels": expected["pixels"]})["tokens"]
    np.testing.assert_array_equal(found, expected["codes"])
    np.testing.assert_allclose(codec.decode(expected["codes"]), expected["painted"], atol=1e-5)
    assert all(measured.passed for measured in verify(dvae_bundle))


def test_a_dvae_of_several_blocks_has_the_published_names(tmp_path: Path) -> None:
    """OpenAI's has two in each group; equal names, equal places."""
    codec = random_dvae({"encoder": 4, "decoder": 4, "first": 6, "blocks": 2, "codebook": 12}, 5)
    sizes = DvaeSizes(4, 4, 6, 2, 12)
    tensors = {"decoder.blocks.input.w": codec.detokenizer.codebook.detach().t()[:, :, None, None].contiguous()}
    assert codec.tokenizer is not None
    for half, module, layout in (
        ("encoder", codec.tokenizer.encoder, encoder_layout(sizes)),
        ("decoder", codec.detokenizer.decoder, decoder_layout(sizes)),
    ):
        tensors |= {f"{half}.blocks.{name}": tensor for name, tensor in weight_layout.invert(module, layout).items()}
    assert {"encoder.blocks.group_2.block_1.id_path.w", "decoder.blocks.group_4.block_2.res_path.conv_4.b"} <= set(
        tensors
    )
    assert "encoder.blocks.group_2.block_2.id_path.w" not in tensors
    save_file(tensors, tmp_path / "model.safetensors")
    again, codes = open_image_codec(tmp_path), torch.arange(6).reshape(1, 2, 3)
    assert torch.equal(again.detokenizer(codes), codec.detokenizer(codes))


@pytest.mark.parametrize("prefixes", [("encoder.", "decoder."), ("enc.", "dec.")])
def test_a_state_dict_of_both_halves_is_a_dvae(tmp_path: Path, prefixes: tuple[str, str]) -> None:
    pickled = open_image_codec(GOLDEN / "dvae")
    assert pickled.checkpoint is not None
    tensors = {
        name.replace("encoder.", prefixes[0], 1).replace("decoder.", prefixes[1], 1): tensor.contiguous()
        for name, tensor in pickled.checkpoint.tensors.items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    codes = torch.arange(6).reshape(1, 2, 3)
    with torch.no_grad():
        found = open_image_codec(tmp_path).detokenizer(codes)
        torch.testing.assert_close(found, pickled.detokenizer(codes))


@pytest.mark.parametrize("name", ["plain", "blocks"])
def test_dalle_pytorch_s_discrete_vae(name: str) -> None:
    """From its `vae.pt`, with and without residual blocks, and from the weights alone."""
    expected, codec = (
        npz(GOLDEN / "discrete_vae" / f"{name}.npz"),
        open_image_codec(GOLDEN / "discrete_vae" / f"{name}.pt", 32),
    )
    assert (codec.kind, codec.codebook, codec.factor, codec.grid) == ("dvae", 20, 4, (8, 8))
    assert codec.checkpoint is not None
    tensors = {n.removeprefix("weights."): tensor for n, tensor in codec.checkpoint.tensors.items()}
    for read in (codec, read_image_codec(Checkpoint(tensors, {}, None, (), "part"), 32)):
        assert read.tokenizer is not None
        with torch.no_grad():
            codes = read.tokenizer(torch.from_numpy(expected["pixels"]))
            painted = read.detokenizer(torch.from_numpy(expected["codes"]))
        assert len(np.unique(codes)) > 8
        np.testing.assert_array_equal(codes, expected["codes"])
        np.testing.assert_allclose(painted, expected["painted"], atol=1e-6)


@pytest.mark.parametrize("kind", ["nearest", "gumbel"])
def test_taming_s_vqgan(kind: str, seeded: ModuleType, tmp_path: Path) -> None:
    stored = npz(GOLDEN / "vqgan.npz")
    config = json.loads(str(stored["config"]))
    shapes = {name: tuple(shape) for name, shape in json.loads(str(stored[f"{kind}/shapes"])).items()}
    named = {name: torch.from_numpy(value) for name, value in seeded.seeded(shapes).items()}
    training = {"loss.discriminator.main.0.weight": torch.zeros(2, 2)}
    torch.save({"epoch": 3, "state_dict": named | training}, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(json.dumps({"model": {"params": {"ddconfig": config}}}), "utf-8")
    codec = open_image_codec(tmp_path)
    assert (codec.kind, codec.codebook, codec.factor, codec.grid) == ("vqgan", 48, 4, (8, 8))
    assert codec.tokenizer is not None
    with torch.no_grad():
        codes = codec.tokenizer(torch.from_numpy(stored[f"{kind}/pixels"]))
        painted = codec.detokenizer(torch.from_numpy(stored[f"{kind}/codes"]))
    assert len(np.unique(stored[f"{kind}/codes"])) > 8
    np.testing.assert_array_equal(codes, stored[f"{kind}/codes"])
    np.testing.assert_allclose(painted, stored[f"{kind}/painted"], atol=2e-5)


@pytest.fixture(scope="module")
def diffusers_model() -> Any:
    import diffusers

    torch.manual_seed(0)
    model = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=24,
        norm_num_groups=8,
        vq_embed_dim=5,
    ).eval()
    with torch.no_grad():
        model.quantize.embedding.weight.normal_(0, 0.3)
    return model


def test_diffusers_vq_model(diffusers_model: Any, tmp_path: Path) -> None:
    diffusers_model.save_pretrained(tmp_path / "vqvae")
    write_bundle(vqgan_family.build(request("vqgan", tmp_path / "vqvae")), tmp_path / "tiny")
    codec = PictureCodec(Bundle.open(tmp_path / "tiny"))
    pixels = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        latents = diffusers_model.encode(2 * pixels - 1).latents
        codes = diffusers_model.quantize(latents)[2][2].reshape(2, 8, 12).numpy()
        painted = (diffusers_model.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert len(np.unique(codes)) > 5
    found = codec.sessions.run_chain(("image_tokenizer",), {"pixels": pixels.numpy()})["tokens"]
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(codec.decode(codes), painted, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"norm_type": "spatial"}, "norm_type `spatial`"), ({"_class_name": "AutoencoderKL"}, "is a `AutoencoderKL`")],
)
def test_kinds_of_vq_model_that_are_not_known_are_named(
    diffusers_model: Any, tmp_path: Path, change: dict[str, str], words: str
) -> None:
    diffusers_model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | change), "utf-8")
    with pytest.raises(VlrtError, match=words):
        open_image_codec(tmp_path)


def test_the_real_vq_vae_on_photographs(shared_dir: Path, tmp_path: Path) -> None:
    """Codes are those of the card's formula, and the loss is what the card says: 0.0025 to 0.006."""
    write_bundle(vq_vae_family.build(request("vq-vae", shared_dir / "vqvae")), tmp_path / "tiny")
    codec, tensors = PictureCodec(Bundle.open(tmp_path / "tiny")), load_file(shared_dir / "vqvae" / "model.safetensors")
    losses = []
    for path in sorted((shared_dir / "flickr8k-dev" / "images").glob("*.jpg"))[:16]:
        picture = codec.fit(load(path), (96, 96))
        pixels, found = codec.pixels([picture]), codec.encode([picture])
        with torch.no_grad():
            codes, painted = plain_vq_vae(tensors, torch.from_numpy(pixels))
        np.testing.assert_array_equal(found, codes)
        again = codec.decode(found)
        np.testing.assert_allclose(again, painted, atol=1e-5)
        losses.append(float(np.square(again - pixels).mean()))
    assert 0.0025 < float(np.median(losses)) < 0.006


def test_random_weights_of_each_kind() -> None:
    """Equal seeds, equal weights; two codecs of one plan paint what they read."""
    small = {"channels": [8, 16], "blocks": 1, "attended": [1], "latent": 4, "width": 4, "groups": 4, "codebook": 20}
    for codec in (random_vq_vae(SMALL, 1), random_vqgan(small, 1)):
        again = random_vq_vae(SMALL, 1) if codec.kind == "vq-vae" else random_vqgan(small, 1)
        codes = torch.arange(6).reshape(1, 2, 3)
        assert torch.equal(codec.detokenizer(codes), again.detokenizer(codes))
        assert codec.tokenizer is not None
        assert codec.tokenizer(codec.detokenizer(codes)).shape == codes.shape


@pytest.fixture
def small(small_codec: Path) -> tuple[Bundle, ImageTokenizer, int]:
    """A bundle, its tokenizer, and the code that its pictures have most."""
    tokenizer = random_vq_vae(SMALL, 0).tokenizer
    assert tokenizer is not None
    bundle = Bundle.open(small_codec)
    codec = PictureCodec(bundle)
    used = np.bincount(np.concatenate([codec.encode([picture]).ravel() for picture in pictures(codec)]))
    return bundle, tokenizer, int(used.argmax())


def test_codes_that_double_precision_gives_otherwise_are_counted(small: tuple[Bundle, ImageTokenizer, int]) -> None:
    bundle, tokenizer, most = small
    assert measure_codes(bundle, tokenizer).passed
    assert tokenizer.codebook is not None
    with torch.no_grad():
        tokenizer.codebook[most] += 5.0
    measured = measure_codes(bundle, tokenizer)
    assert not measured.passed
    assert measured.value > 10


def test_ties_are_told_apart(small: tuple[Bundle, ImageTokenizer, int]) -> None:
    """Where a code that the graph does not take is nearer by a hair, that is no fault."""
    bundle, tokenizer, most = small
    assert tokenizer.codebook is not None
    with torch.no_grad():
        for place, hair in ((most - 1, 1e-6), (most - 2, -1e-6)):
            tokenizer.codebook[place] = tokenizer.codebook[most] + hair
    measured = measure_codes(bundle, tokenizer)
    assert measured.passed
    assert measured.note.endswith(" ties")


def test_damaged_checkpoints_are_named(tmp_path: Path, shared_dir: Path) -> None:
    tensors = load_file(shared_dir / "vqvae" / "model.safetensors")
    whole = dict(tensors)
    del tensors["decoder.conv_1.weight"]
    with pytest.raises(VlrtError, match=r"lacks the tensor `decoder\.conv_1\.weight`"):
        _open(tensors, tmp_path)
    with pytest.raises(VlrtError, match=r"unexpected tensor `surplus`"):
        _open(whole | {"surplus": torch.zeros(2)}, tmp_path)
    with pytest.raises(VlrtError, match=r"no codec of pictures"):
        _open({"something": torch.zeros(2)}, tmp_path)
    _open(whole, tmp_path)
    with pytest.raises(VlrtError, match="is a vq-vae, expected a vqgan"):
        vqgan_family.build(request("vqgan", tmp_path))
    with pytest.raises(VlrtError, match="lacks an encoder or decoder"):
        _open({"encoder.blocks.input.w": torch.zeros(2)}, tmp_path)


def _open(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors")
    open_image_codec(folder)


def test_attention_bounds_a_picture_s_codes() -> None:
    for attended, middle, most in (((), False, 65536), ((), True, 16384), ((1, 2), True, 4096), ((0,), False, 1024)):
        sizes = VqGanSizes((32, 32, 32), 1, attended, 4, middle_attention=middle)
        assert sizes.most_codes == most
        places = most * (16 if 0 in attended else 4 if attended else 1)
        assert places == (16384 if middle or attended else 65536)


def test_a_vqgan_with_a_missing_level_is_named() -> None:
    codec = random_vqgan({"channels": [32, 32], "blocks": 1, "attended": [], "latent": 4, "width": 4, "codebook": 8}, 0)
    assert codec.checkpoint is None
    with pytest.raises(VlrtError, match="not a VQGAN"):
        load_vqgan(Checkpoint({"quantize.embedding.weight": torch.zeros(4, 4)}, {}, None, (), "golden"))
