"""T5's encoder in diffusers' folders: from transformers' weights, its tokenizer, and its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vlrt.errors import VlrtError
from vlrt.manifest import TextSpec
from vlrt_export import sentencepiece_file, weight_layout
from vlrt_export.blip2_layout import LANGUAGE, T5_WORDS, t5_encoder_layout
from vlrt_export.diffusers_folder import Component
from vlrt_export.graph import Graph
from vlrt_export.modules.t5 import T5_DEFAULTS, T5Sizes
from vlrt_export.modules.t5_prompt import T5Prompt
from vlrt_export.weight_layout import Layout

PAD_ID, END_ID = 0, 1
_SHARED, _ALIAS = "shared.weight", "encoder.embed_tokens.weight"


def load_t5_prompt(component: Component) -> T5Prompt:
    """Builds the encoder with the weights of transformers' ``T5EncoderModel``.

    Raises:
        VlrtError: another kind of model, or weights that do not fit.
    """
    sizes = t5_sizes(component.config)
    if component.checkpoint is None:
        return component.build(lambda: T5Prompt(sizes))
    tensors = component.checkpoint.tensors
    layout = _layout(sizes, _SHARED if _SHARED in tensors else _ALIAS)
    known = weight_layout.names_of(layout) | {_SHARED, _ALIAS}
    weight_layout.check_surplus(tensors, known, "^decoder\\.|^lm_head\\.", component.where)
    return weight_layout.build(lambda: T5Prompt(sizes), layout, tensors, component.where)


def t5_sizes(config: Mapping[str, Any]) -> T5Sizes:
    """Sizes of a ``T5Config``, with transformers' defaults."""
    settings = T5_DEFAULTS | {name: value for name, value in config.items() if name in T5_DEFAULTS}
    described = str(settings["feed_forward_proj"])
    gated, activation = described.startswith("gated-"), described.removeprefix("gated-")
    return T5Sizes(
        settings["vocab_size"],
        settings["d_model"],
        settings["num_layers"],
        settings["num_layers"],
        settings["num_heads"],
        settings["d_kv"],
        settings["d_ff"],
        buckets=settings["relative_attention_num_buckets"],
        farthest=settings["relative_attention_max_distance"],
        # The gated gelu of T5's configurations is the approximate one.
        activation="gelu_new" if gated and activation == "gelu" else activation,
        gated=gated,
        epsilon=settings["layer_norm_epsilon"],
    )


def find_t5_tokenizer(folder: Path | None, vocabulary: int) -> Tokenizer:
    """The tokenizer in a folder, without the end it may add; a stand-in of letters where there is no folder.

    Raises:
        VlrtError: the folder has none, or it is another model's.
    """
    if folder is None:
        letters = [_piece for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for _piece in (letter, f"▁{letter}")]
        return sentencepiece_file.unigram([(text, -1.0) for text in ("<pad>", "</s>", "<unk>", "▁", *letters)], 2)
    if (folder / "tokenizer.json").is_file():
        try:
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
            raise VlrtError(f"the tokenizer of `{folder.name}` is damaged: {error}", "download it again") from None
    elif (folder / sentencepiece_file.FILE).is_file():
        tokenizer = sentencepiece_file.read_unigram(folder / sentencepiece_file.FILE)
    else:
        raise VlrtError(f"`{folder.name}` holds no tokenizer", f"expected tokenizer.json or {sentencepiece_file.FILE}")
    if tokenizer.token_to_id("</s>") != END_ID or max(tokenizer.get_vocab().values()) >= vocabulary:
        raise VlrtError(f"the tokenizer of `{folder.name}` is not T5's", "download it again")
    return tokenizer


def t5_text_spec(tokenizer: str, sizes: T5Sizes, context: int, ids: str) -> TextSpec:
    """Ids of a prompt: its own, the end, and padding up to the context."""
    return TextSpec(tokenizer, context, sizes.vocabulary, PAD_ID, end_id=END_ID, pad_to_context=True, input=ids)


def t5_prompt_graph(model: T5Prompt, role: str, names: tuple[str, str, str], tolerance: float) -> Graph:
    """The graph from ids and mask to states; `names` are theirs."""
    ids, mask, states = names
    axes = {0: "batch", 1: "length"}
    cases = [dict(zip((ids, mask), _prompt(model.sizes.vocabulary, *shape))) for shape in ((2, 7), (1, 5), (3, 9))]
    return Graph(
        role=role,
        module=model,
        inputs=cases[0],
        outputs=(states,),
        dynamic={ids: axes, mask: axes},
        output_axes={states: axes},
        cases=cases[1:],
        tolerance=tolerance,
    )


def _prompt(vocabulary: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Random ids whose rows end at different places."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(END_ID + 1, vocabulary, (rows, length), generator=generator)
    mask = (torch.arange(length) < length - torch.arange(rows)[:, None]).long()
    return ids * mask, mask


def _layout(sizes: T5Sizes, words: str) -> Layout:
    def renamed(name: str) -> str:
        return words if name == T5_WORDS else name.removeprefix(LANGUAGE)

    found = t5_encoder_layout(sizes)
    return {ours: replace(part, names=tuple(map(renamed, part.names))) for ours, part in found.items()}
