"""Our denoisers against diffusers' UNets, kind by kind, and the projection of the prompt outside of them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from vlrt.errors import VlrtError
from vlrt_export.modules.diffusion_autoencoder import LatentDecoder, LatentEncoder
from vlrt_export.modules.diffusion_blocks import cross_attentions, portable
from vlrt_export.modules.diffusion_unet import BIAS, CLASS, EMBEDDING, GUIDANCE, Denoiser, PromptProjection

SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "out_channels": 8,
}
TEXT = {"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj"}
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
VECTOR = torch.linspace(-1, 1, 40).reshape(2, 20)
PICTURE = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
WIDE = torch.linspace(-1, 1, 128).reshape(2, 64)

CASES: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "linear": ({"use_linear_projection": True, "attention_head_dim": (4, 8)}, {}, {}),
    "joined": ({"in_channels": 7}, {"low_resolution": PICTURE}, {}),
    "class": ({"num_class_embeds": 9}, {CLASS: torch.tensor([3, 8])}, {"class_labels": torch.tensor([3, 8])}),
    "distilled": ({"time_cond_proj_dim": 20}, {GUIDANCE: VECTOR}, {"timestep_cond": VECTOR}),
    "simple": (SIMPLE, {}, {}),
    "masked": (
        SIMPLE | {"class_embed_type": "identity"},
        {CLASS: WIDE, BIAS: (1 - MASK.float()) * -10000},
        {"class_labels": WIDE, "attention_mask": MASK},
    ),
    "text": (
        SIMPLE
        | TEXT
        | {"addition_embed_type": "text", "addition_embed_type_num_heads": 4, "cross_attention_norm": "group_norm"}
        | {"act_fn": "gelu", "class_embed_type": "timestep", "cross_attention_dim": 32},
        {CLASS: torch.tensor([3, 30])},
        {"class_labels": torch.tensor([3, 30])},
    ),
    "prompt alone": (SIMPLE | TEXT | {"only_cross_attention": True, "cross_attention_norm": "layer_norm"}, {}, {}),
    "scaled": (
        {"resnet_out_scale_factor": 1.414, "mid_block_scale_factor": 1.414, "center_input_sample": True},
        {},
        {},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_denoiser_is_the_unet(case: str, diffusers_folders: ModuleType) -> None:
    sizes, conditions, given = CASES[case]
    unet = diffusers_folders.unet(**sizes)
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 16, 16, generator=generator)
    states = torch.randn(2, 5, sizes.get("encoder_hid_dim", 32), generator=generator)
    timestep = torch.tensor([7, 800])
    joined = [tensor for name, tensor in conditions.items() if name == "low_resolution"]
    with torch.no_grad():
        expected = unet(torch.cat([sample, *joined], 1), timestep, encoder_hidden_states=states, **given).sample
        projection = PromptProjection(unet)
        memory = projection(states)
        if projection.embedding is not None:
            conditions = {**conditions, EMBEDDING: memory[0]}
            memory = memory[1:]
        found = Denoiser(unet, tuple(conditions), projection.layers)(sample, timestep, *conditions.values(), *memory)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_the_copy_shares_weights_and_leaves_the_model_alone(diffusers_folders: ModuleType) -> None:
    unet = diffusers_folders.unet()
    made = portable(unet)
    assert len(cross_attentions(made)) == len(cross_attentions(unet)) == 4
    assert type(unet.mid_block.resnets[0]).__name__ == "ResnetBlock2D"
    assert made.conv_in.weight is unet.conv_in.weight
    assert made.time_embedding.linear_1.weight.data_ptr() == unet.time_embedding.linear_1.weight.data_ptr()


SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (SDXL, "`addition_embed_type` 'text_time'"),
        ({"time_embedding_type": "fourier"}, "`time_embedding_type` 'fourier'"),
    ],
)
def test_unknown_parts_are_refused(changes: dict[str, Any], message: str, diffusers_folders: ModuleType) -> None:
    with pytest.raises(VlrtError, match=message):
        Denoiser(diffusers_folders.unet(**changes))


@pytest.mark.parametrize(("kind", "more"), [("AutoencoderKL", {}), ("VQModel", {"num_vq_embeddings": 24})])
def test_autoencoders(kind: str, more: dict[str, Any], diffusers_folders: ModuleType) -> None:
    model = diffusers_folders.autoencoder(kind, **more)
    latents = torch.randn(2, 4, 6, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(LatentDecoder(model)(latents), model.decode(latents).sample, atol=1e-5, rtol=0)
        if kind == "AutoencoderKL":
            picture = torch.rand(1, 3, 12, 16) * 2 - 1
            mean, deviation = LatentEncoder(model)(picture)
            posterior = model.encode(picture).latent_dist
            torch.testing.assert_close(mean, posterior.mean, atol=1e-5, rtol=0)
            torch.testing.assert_close(deviation, posterior.std, atol=1e-5, rtol=0)
