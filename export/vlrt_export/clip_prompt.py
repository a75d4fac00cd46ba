"""CLIP's text encoder of a diffusion model: from transformers' weights, as a graph from ids to states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt_export.clip_checkpoint import HISTORIC_END, TEXT_DEFAULTS
from vlrt_export.clip_vision import clip_block_layout
from vlrt_export.graph import Graph
from vlrt_export.modules.clip_prompt import ClipPrompt
from vlrt_export.modules.clip_text import TextSizes
from vlrt_export.modules.clip_transformer import ACTIVATIONS, TransformerSizes
from vlrt_export.weight_layout import Layout, Part, build, check_surplus, invert, names_of, same

_DEFAULTS = TEXT_DEFAULTS | {"projection_dim": 512}
_PROJECTION = "text_projection.weight"


def load_clip_prompt(config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> ClipPrompt:
    """Builds the encoder with the weights of transformers' ``CLIPTextModel``, with or without projection.

    Raises:
        VlrtError: another kind of model, or weights that do not fit.
    """
    sizes, projected = _sizes(config, where)
    dimension = projected if _PROJECTION in tensors else 0
    layout = _layout(sizes.transformer.layers, dimension > 0)
    check_surplus(tensors, names_of(layout), r"position_ids$", where)
    return build(lambda: ClipPrompt(sizes, dimension), layout, tensors, where)


def random_clip_prompt(config: Mapping[str, Any], seed: int, projected: bool = False) -> ClipPrompt:
    """Builds the encoder with random weights."""
    sizes, dimension = _sizes(config, "the text encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = ClipPrompt(sizes, dimension if projected else 0).eval().requires_grad_(False)
        made.positional_embedding.normal_(std=0.02)
        if made.text_projection is not None:
            made.text_projection.normal_(std=sizes.transformer.width**-0.5)
    return made


def to_transformers(model: ClipPrompt) -> dict[str, Tensor]:
    """The encoder's weights under transformers' names."""
    return invert(model, _layout(model.sizes.transformer.layers, model.dimension > 0))


def _sizes(config: Mapping[str, Any], where: str) -> tuple[TextSizes, int]:
    """Sizes of the transformer, and the length that a projection's embeddings have."""
    settings = _DEFAULTS | {name: value for name, value in config.items() if name in _DEFAULTS}
    if settings["hidden_act"] not in ACTIVATIONS:
        raise VlrtError(f"`{where}` has the activation `{settings['hidden_act']}`, known are {', '.join(ACTIVATIONS)}")
    transformer = TransformerSizes(
        settings["hidden_size"],
        settings["num_hidden_layers"],
        settings["num_attention_heads"],
        settings["intermediate_size"],
        settings["hidden_act"],
        settings["layer_norm_eps"],
    )
    end = None if settings["eos_token_id"] == HISTORIC_END else settings["eos_token_id"]
    sizes = TextSizes(settings["vocab_size"], settings["max_position_embeddings"], transformer, end)
    return sizes, settings["projection_dim"]


def clip_prompt_graph(
    model: ClipPrompt, role: str, outputs: tuple[str, ...], tolerance: float, ids: str = "input_ids"
) -> Graph:
    """The graph from ids [N, L] to `outputs`: states [N, L, W] and, with a projection, embeddings [N, D]."""
    axes = {0: "batch", 1: "length"}
    context = model.sizes.context
    cases = [{ids: _ids(model, rows, length)} for rows, length in ((2, min(5, context)), (1, context), (3, 4))]
    return Graph(
        role=role,
        module=model,
        inputs=cases[0],
        outputs=outputs,
        dynamic={ids: axes},
        output_axes=dict(zip(outputs, (axes, {0: "batch"}))),
        cases=cases[1:],
        tolerance=tolerance,
    )


def _ids(model: ClipPrompt, rows: int, length: int) -> Tensor:
    """Random ids, with an end at another place in every row."""
    sizes = model.sizes
    end = sizes.vocabulary - 1 if sizes.end_id is None else sizes.end_id
    ids = torch.randint(0, sizes.vocabulary - 2, (rows, length), generator=torch.Generator().manual_seed(length))
    for row in range(rows):
        ids[row, length - 1 - row % length :] = end
    return ids


def _layout(layers: int, projected: bool) -> Layout:
    embeddings = "text_model.embeddings"
    found: Layout = {
        "token_embedding.weight": Part((f"{embeddings}.token_embedding.weight",)),
        "positional_embedding": Part((f"{embeddings}.position_embedding.weight",)),
    }
    found |= same("ln_final", "text_model.final_layer_norm")
    found |= {"text_projection": Part((_PROJECTION,), transpose=True)} if projected else {}
    return found | clip_block_layout("text_model", layers)
