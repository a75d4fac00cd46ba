"""CoCa checkpoints of open_clip: a state dict, and its model configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlrt.errors import VlrtError
from vlrt_export import weight_layout
from vlrt_export.checkpoints import Checkpoint
from vlrt_export.modules.clip import randomise
from vlrt_export.modules.clip_transformer import TransformerSizes
from vlrt_export.modules.coca import Coca, CocaSizes
from vlrt_export.weight_layout import Part

CONFIG = "open_clip_config.json"
_BUFFERS = r"attn_mask$"
_REFUSED: dict[str, tuple[tuple[str, Any], ...]] = {
    "vision_cfg": (
        *(("ls_init_value", None), ("no_ln_pre", False), ("pos_embed_type", "learnable"), ("pool_type", "tok")),
        *(("attentional_pool", True), ("timm_model_name", None), ("block_type", None), ("mlp_ratio", 4.0)),
    ),
    "text_cfg": (
        *(("ls_init_value", None), ("embed_cls", True), ("no_causal_mask", False), ("hf_model_name", None)),
        *(("pad_id", 0), ("proj_type", "linear"), ("proj_bias", False), ("block_type", None), ("mlp_ratio", 4.0)),
    ),
    "multimodal_cfg": (("ls_init_value", None), ("mlp_ratio", 4)),
}
"""Values that every published CoCa has; with others the modules would compute something else."""


def read_config(
    checkpoint: Checkpoint | None, given: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's and the preprocessing's configuration: the checkpoint's own, else the zoo entry's.

    Raises:
        VlrtError: there is none.
    """
    own = checkpoint.json(CONFIG) if checkpoint else {}
    if own:
        return dict(own.get("model_cfg", own)), dict(own.get("preprocess_cfg", {}))
    if checkpoint and "multimodal_cfg" in checkpoint.config:
        return dict(checkpoint.config), {}
    if given:
        return dict(given), {}
    raise VlrtError("a CoCa checkpoint needs its model configuration", f"put it beside the weights as `{CONFIG}`")


def load_coca(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Coca:
    """Builds CoCa with a checkpoint's weights, widened to fp32, in eval mode.

    Raises:
        VlrtError: another model, or a configuration that is not served; a tensor missing, left over, of another shape.
    """
    sizes, where = sizes_of(config), checkpoint.origin
    layout = {name: Part((name,)) for name in Coca(sizes).state_dict()}
    model = weight_layout.build(lambda: Coca(sizes), layout, checkpoint.tensors, where)
    weight_layout.check_surplus(checkpoint.tensors, set(layout), _BUFFERS, where)
    return _with_mask(model)


def random_coca(config: Mapping[str, Any], seed: int) -> Coca:
    """CoCa of that configuration with random weights of `seed`, in eval mode."""
    model = Coca(sizes_of(config))
    randomise(model, seed)
    return model.eval().requires_grad_(False)


def _with_mask(model: Coca) -> Coca:
    """Building on no device leaves the mask, which no checkpoint holds, without values."""
    fresh = type(model.text).build_mask(model.sizes.context)
    model.text.register_buffer("causal_mask", fresh, persistent=False)
    return model


def sizes_of(config: Mapping[str, Any]) -> CocaSizes:
    """Sizes from open_clip's model configuration.

    Raises:
        VlrtError: values that are missing, do not fit each other, or are not served.
    """
    try:
        vision, text, fusion = (config[name] for name in _REFUSED)
        for name, usual in _REFUSED.items():
            for key, value in usual:
                if config[name].get(key, value) != value:
                    raise VlrtError(f"`{key}` of `{name}` is {config[name][key]!r}, expected {value!r}", "report it")
        activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
        heads = vision["width"] // vision.get("head_width", 64)
        return CocaSizes(
            vision["image_size"],
            vision["patch_size"],
            _transformer(vision, heads, activation),
            vision.get("attn_pooler_queries", 256),
            vision.get("attn_pooler_heads", 8),
            _transformer(text, text["heads"], activation),
            _transformer(fusion, fusion["heads"], activation),
            text["vocab_size"],
            text["context_length"],
            config["embed_dim"],
            bool(text.get("correct_cls_mask", False)),
        )
    except KeyError as error:
        raise VlrtError(
            f"the model configuration is not CoCa's: it lacks `{error.args[0]}`", "is it the right one?"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise VlrtError(f"the model configuration does not fit: {error}", "is it the right one?") from None


def _transformer(section: Mapping[str, Any], heads: int, activation: str) -> TransformerSizes:
    width = section["width"]
    return TransformerSizes(width, section["layers"], heads, 4 * width, activation)
