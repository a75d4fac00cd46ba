"""CLIP checkpoints: sizes and weights from transformers' layout, from OpenAI's, or from the zoo's numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.modules.clip import Clip, ClipSizes, randomise
from vlrt_export.modules.clip_resnet import ResNetSizes
from vlrt_export.modules.clip_text import TextSizes
from vlrt_export.modules.clip_transformer import ACTIVATIONS, TransformerSizes
from vlrt_export.modules.clip_vit import VisionTransformerSizes

_HEAD = 64
"""Width of an attention head in every original model; their files do not say it."""

HISTORIC_END = 2
"""`eos_token_id` of configurations from before transformers read it; then the largest id is the end."""

TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_RENAMES = (
    (r"text_model\.embeddings\.token_embedding\.weight", "text.token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positional_embedding"),
    (r"text_model\.final_layer_norm\.", "text.ln_final."),
    (r"text_model\.encoder\.layers\.", "text.transformer.resblocks."),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"(resblocks\.\d+)\.self_attn\.", r"\1.attn."),
    (r"(resblocks\.\d+)\.layer_norm(\d)\.", r"\1.ln_\2."),
    (r"(resblocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.c_fc."),
    (r"(resblocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.c_proj."),
)
_TRANSPOSED = {"text_projection.weight": "text.text_projection", "visual_projection.weight": "visual.proj"}
_DESCRIPTIVE = {"input_resolution", "context_length", "vocab_size"}
"""Numbers that OpenAI's archives keep among the weights; the shapes say the same."""


def is_transformers_layout(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's tensors are named as in transformers' `CLIPModel`."""
    return "text_model.embeddings.token_embedding.weight" in checkpoint.tensors


def load_clip(checkpoint: Checkpoint, activation: str | None = None) -> Clip:
    """Builds CLIP with a checkpoint's weights, widened to fp32, in eval mode.

    Args:
        activation: of the feed-forward layers, for OpenAI's layout, which does not say; ``quick_gelu`` where `None`.

    Raises:
        VlrtError: another model, a configuration that is not CLIP's, missing or surplus tensors, other shapes.
    """
    tensors = checkpoint.tensors
    if is_transformers_layout(checkpoint):
        sizes = sizes_from_config(checkpoint)
        weights = dict(_from_transformers(tensors))
    elif "visual.conv1.weight" in tensors and "token_embedding.weight" in tensors:
        sizes = sizes_from_shapes(tensors, activation or "quick_gelu")
        weights = {_from_openai(name): tensor for name, tensor in tensors.items() if name not in _DESCRIPTIVE}
    else:
        shown = ", ".join(f"`{name}`" for name in list(tensors)[:3])
        raise VlrtError(
            f"`{checkpoint.origin}` is not CLIP: its tensors are {shown}, …", "`vlrt models` names the other families"
        )
    model = Clip(sizes)
    _load(model, weights, checkpoint.origin)
    return model.eval()


def random_clip(options: Mapping[str, Any], seed: int) -> Clip:
    """Builds CLIP of the zoo's sizes with random weights of `seed`, in eval mode."""
    model = Clip(sizes_from_options(options))
    randomise(model, seed)
    return model.eval()


def sizes_from_options(options: Mapping[str, Any]) -> ClipSizes:
    """Sizes from an entry of `models.yaml`: an image tower with `patch_size` is a ViT, one with `blocks` a ResNet.

    Raises:
        VlrtError: a number is missing, or the numbers do not fit each other.
    """
    try:
        width, layers = options["text_width"], options.get("text_layers", 12)
        text = TransformerSizes(width, layers, options.get("text_heads", width // _HEAD), 4 * width)
        vision: VisionTransformerSizes | ResNetSizes
        if "blocks" in options:
            heads = options["width"] * 32 // _HEAD
            vision = ResNetSizes(options["image_size"], options["width"], tuple(options["blocks"]), heads)
        else:
            wide = options["width"]
            tower = TransformerSizes(wide, options["layers"], options.get("heads", wide // _HEAD), 4 * wide)
            vision = VisionTransformerSizes(options["image_size"], options["patch_size"], tower)
        context, vocabulary = options.get("context", 77), options.get("vocabulary", 49408)
        return ClipSizes(vision, TextSizes(vocabulary, context, text), options["dimension"])
    except KeyError as error:
        raise VlrtError(f"the model's options lack `{error.args[0]}`", "correct models.yaml") from None
    except (ValueError, TypeError) as error:
        raise VlrtError(f"the model's options do not fit: {error}", "correct models.yaml") from None


def sizes_from_config(checkpoint: Checkpoint) -> ClipSizes:
    """Sizes from the ``config.json`` of transformers' layout, with that library's defaults.

    Raises:
        VlrtError: no configuration, or one of another model or activation.
    """
    config = checkpoint.config
    if not config:
        raise VlrtError(
            f"`{checkpoint.origin}` has no config.json", "give the folder that holds the weights and their config.json"
        )
    kind = config.get("model_type")
    if kind != "clip":
        raise VlrtError(f"`{checkpoint.origin}` is a `{kind}` model, expected `clip`", "`vlrt models` lists families")
    text, vision = _section(config, "text", TEXT_DEFAULTS), _section(config, "vision", VISION_DEFAULTS)
    end = None if text["eos_token_id"] == HISTORIC_END else text["eos_token_id"]
    try:
        return ClipSizes(
            VisionTransformerSizes(vision["image_size"], vision["patch_size"], _transformer(vision)),
            TextSizes(text["vocab_size"], text["max_position_embeddings"], _transformer(text), end),
            config.get("projection_dim", 512),
        )
    except (ValueError, TypeError) as error:
        raise VlrtError(f"config.json of `{checkpoint.origin}` is not CLIP's: {error}") from None


def sizes_from_shapes(tensors: Mapping[str, Tensor], activation: str = "quick_gelu") -> ClipSizes:
    """Sizes from the shapes of OpenAI's layout, which has no configuration.

    Source: openai/CLIP ``build_model``; heads are 64 wide, feed-forward layers four times the width.

    Raises:
        VlrtError: a tensor that every such checkpoint has is missing.
    """
    try:
        width, dimension = tensors["text_projection"].shape
        layers = _count(tensors, r"transformer\.resblocks\.(\d+)\.")
        text = TransformerSizes(width, layers, width // _HEAD, 4 * width, activation)
        context, vocabulary = len(tensors["positional_embedding"]), len(tensors["token_embedding.weight"])
        vision = _vit_from_shapes(tensors, activation) if "visual.proj" in tensors else _resnet_from_shapes(tensors)
    except KeyError as error:
        raise VlrtError(f"the checkpoint is not CLIP in OpenAI's layout: {error.args[0]}") from None
    except (ValueError, TypeError) as error:
        raise VlrtError(f"the checkpoint's shapes are not CLIP's: {error}") from None
    return ClipSizes(vision, TextSizes(vocabulary, context, text), dimension)


def _vit_from_shapes(tensors: Mapping[str, Tensor], activation: str) -> VisionTransformerSizes:
    width, _, patch, _ = tensors["visual.conv1.weight"].shape
    layers = _count(tensors, r"visual\.transformer\.resblocks\.(\d+)\.")
    side = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    tower = TransformerSizes(width, layers, width // _HEAD, 4 * width, activation)
    return VisionTransformerSizes(side * patch, patch, tower)


def _resnet_from_shapes(tensors: Mapping[str, Tensor]) -> ResNetSizes:
    first, second, third, fourth = (_count(tensors, rf"visual\.layer{n}\.(\d+)\.") for n in (1, 2, 3, 4))
    width = len(tensors["visual.layer1.0.conv1.weight"])
    side = round((len(tensors["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
    return ResNetSizes(side * 32, width, (first, second, third, fourth), width * 32 // _HEAD)


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match.group(1) for name in tensors if (match := re.match(pattern, name))})


def _section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """One tower's configuration; `…_config_dict` is where older files keep what overrides the rest."""
    given = [config.get(f"{name}_config"), config.get(f"{name}_config_dict")]
    merged = dict(defaults)
    for part in given:
        merged |= {key: value for key, value in part.items() if key in defaults} if isinstance(part, dict) else {}
    return merged


def _transformer(section: Mapping[str, Any]) -> TransformerSizes:
    if section["hidden_act"] not in ACTIVATIONS:
        raise VlrtError(f"activation `{section['hidden_act']}` is not one of {', '.join(ACTIVATIONS)}")
    return TransformerSizes(
        section["hidden_size"],
        section["num_hidden_layers"],
        section["num_attention_heads"],
        section["intermediate_size"],
        section["hidden_act"],
        section["layer_norm_eps"],
    )


def _from_openai(name: str) -> str:
    return name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}"


def _from_transformers(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors; queries, keys and values are stacked to one matrix."""
    for name in tensors:
        if name.endswith("position_ids"):
            continue
        if name in _TRANSPOSED:
            yield _TRANSPOSED[name], tensors[name].t()
        elif match := re.fullmatch(r"(.*\.self_attn)\.q_proj\.(weight|bias)", name):
            parts = [f"{match.group(1)}.{which}_proj.{match.group(2)}" for which in "qkv"]
            absent = [part for part in parts if part not in tensors]
            if absent:
                raise VlrtError(f"the checkpoint lacks `{absent[0]}`", "download it again")
            stacked = _renamed(f"{match.group(1)}.in_proj_{match.group(2)}")
            yield stacked, torch.cat([tensors[part] for part in parts])
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            yield _renamed(name), tensors[name]


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _load(model: Clip, weights: Mapping[str, Tensor], origin: str) -> None:
    expected = model.state_dict()
    missing, surplus = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or surplus:
        word, names = ("lacks", missing) if missing else ("has the unknown", surplus)
        raise VlrtError(f"`{origin}` {word} `{names[0]}`" + (f" and {len(names) - 1} more" if names[1:] else ""))
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            found, wanted = list(tensor.shape), list(expected[name].shape)
            raise VlrtError(f"`{name}` of `{origin}` has shape {found}, expected {wanted}", "is it the right config?")
    # Copied, not assigned: the tensors may be views of a mapped file, and are often fp16.
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in weights.items()}, strict=False)
