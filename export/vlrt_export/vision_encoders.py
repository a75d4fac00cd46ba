"""Image encoders of vision-encoder-decoder models: ViT and DeiT as our own module, others traced from transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.modules.vit import Vit, VitSizes
from vlrt_export.weight_layout import Layout, Part, linear, same

_OURS = ("vit", "deit")
_TRACED = ("swin", "swinv2", "beit", "dinov2", "donut-swin")
KINDS = (*_OURS, *_TRACED)
_VIT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}


@dataclass(frozen=True)
class VisionEncoder:
    """Pixels [N, 3, H, W] to states [N, S, M].

    Args:
        module: in eval mode.
        image_size: H and W.
        length: S.
        width: M.
        layout: where its parameters lie, for encoders of ours.
    """

    module: nn.Module
    image_size: tuple[int, int]
    length: int
    width: int
    layout: Layout | None = None


def load_encoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> VisionEncoder:
    """The encoder of a checkpoint.

    Args:
        config: its part of the configuration.
        tensors: of the checkpoint; the encoder's start with ``encoder.``.
        where: the checkpoint's name for messages.

    Raises:
        VlrtError: an unknown kind; a tensor missing or of another shape or dtype.
    """
    if _kind(config) in _OURS:
        sizes = _vit_sizes(config)
        layout = _vit_layout(sizes)
        return _own(weight_layout.build(lambda: Vit(sizes), layout, tensors, where), layout)
    model = _library_model(config)
    own = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in own:
            hint = "is a shard missing, or is it another model?"
            raise VlrtError(f"`{where}` lacks the tensor `encoder.{name}`", hint)
        if own[name].shape != tensor.shape:
            what = f"`encoder.{name}` of `{where}` has shape {list(own[name].shape)}, expected {list(tensor.shape)}"
            raise VlrtError(what, "check the sizes in `config.json`")
    model.load_state_dict({name: own[name] for name in wanted})
    return _traced(model, config)


def random_encoder(config: Mapping[str, Any]) -> VisionEncoder:
    """An encoder of that configuration with random weights of torch's current seed."""
    if _kind(config) in _OURS:
        sizes = _vit_sizes(config)
        return _own(Vit(sizes).eval().requires_grad_(False), _vit_layout(sizes))
    return _traced(_library_model(config), config)


class _States(nn.Module):
    """A library's encoder as pixels to states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels, return_dict=False)[0]  # type: ignore[no-any-return]


def _own(module: Vit, layout: Layout) -> VisionEncoder:
    sizes = module.sizes
    return VisionEncoder(module, (sizes.image_size, sizes.image_size), sizes.length, sizes.width, layout)


def _traced(model: nn.Module, config: Mapping[str, Any]) -> VisionEncoder:
    side = config.get("image_size", 224)
    size = (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
    module = _States(model.eval().requires_grad_(False))
    with torch.no_grad():
        states = module(torch.zeros(1, 3, *size))
    return VisionEncoder(module, size, states.shape[1], states.shape[2])


def _library_model(config: Mapping[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    settings = {name: value for name, value in config.items() if name != "model_type"}
    made = AutoConfig.for_model(config["model_type"], **settings)
    model: nn.Module = AutoModel.from_config(made, attn_implementation="eager", add_pooling_layer=False)
    return model.float()


def _kind(config: Mapping[str, Any]) -> str:
    kind = str(config.get("model_type"))
    if kind not in KINDS:
        raise VlrtError(f"image encoders of kind `{kind}` are not known", f"known are {', '.join(KINDS)}")
    return kind


def _vit_sizes(config: Mapping[str, Any]) -> VitSizes:
    full = _VIT | dict(config)
    try:
        return VitSizes(
            full["image_size"],
            full["patch_size"],
            full["hidden_size"],
            full["num_hidden_layers"],
            full["num_attention_heads"],
            full["intermediate_size"],
            full["hidden_act"],
            full["layer_norm_eps"],
            leading=2 if full["model_type"] == "deit" else 1,
        )
    except (ValueError, TypeError) as error:
        raise VlrtError(f"the encoder's configuration is not ViT's: {error}", "check `config.json`") from None


def _vit_layout(sizes: VitSizes) -> Layout:
    inside = "encoder.embeddings."
    tokens = ("cls_token", "distillation_token")[: sizes.leading]
    found = same("patches", f"{inside}patch_embeddings.projection") | same("norm", "encoder.layernorm")
    found["leading"] = Part(tuple(f"{inside}{token}" for token in tokens), axis=1)
    found["position"] = Part((f"{inside}position_embeddings",))
    for number in range(sizes.layers):
        ours, theirs = f"layers.{number}", f"encoder.encoder.layer.{number}"
        attention = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
        found |= linear(f"{ours}.qkv", *attention, optional_bias=True)
        found |= linear(f"{ours}.projection", f"{theirs}.attention.output.dense")
        found |= linear(f"{ours}.fc1", f"{theirs}.intermediate.dense") | linear(f"{ours}.fc2", f"{theirs}.output.dense")
        found |= same(f"{ours}.norm1", f"{theirs}.layernorm_before") | same(
            f"{ours}.norm2", f"{theirs}.layernorm_after"
        )
    return found
