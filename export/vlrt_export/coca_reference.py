"""CoCa's last rung: captions against transformers' `generate` over a plain forward pass without caches.

open_clip decodes the same way, but needs torchvision; the tests hold this forward pass against goldens made with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlrt.bundle import Bundle
from vlrt.manifest import Measurement
from vlrt_export.generate_reference import measure_sequences
from vlrt_export.graph import Check
from vlrt_export.modules.coca import Coca

Tolerance = Callable[[str, float], float]

PAD = 0
"""Of open_clip's texts. It is also the id of `!`, which training therefore never asks a model to say."""


def reference_checks(model: Coca, tolerance: Tolerance) -> Sequence[Check]:
    """Sequences in every setting."""

    def sequences(folder: Path) -> Iterator[Measurement]:
        spec = Bundle.open(folder).manifest.decode
        if spec is None:
            raise ValueError("the staged bundle does not decode")

        def generate(given: dict[str, Tensor], **options: Any) -> Any:
            with torch.no_grad():
                states = model.visual(given["pixels"])[1]
            return plain_generate(model, states, spec.start_ids[0], spec.end_ids[0], **options)

        reference = "generate over plain torch"
        yield from measure_sequences(folder, generate, "captions", reference, tolerance("score", 1e-4))

    return (sequences,)


def plain_generate(model: Coca, states: Tensor, start: int, end: int, **options: Any) -> Any:
    """Transformers' `generate` for captions of image states [B, S, D]; padding is never said."""
    from transformers import GenerationConfig, GenerationMixin, PretrainedConfig
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class Plain(nn.Module, GenerationMixin):  # type: ignore[misc]
        main_input_name = "input_ids"
        _is_stateful = False
        device = states.device
        config = PretrainedConfig(vocab_size=model.sizes.vocabulary)
        generation_config = GenerationConfig(bos_token_id=start, eos_token_id=end, pad_token_id=PAD)

        def prepare_inputs_for_generation(self, input_ids: Tensor, states: Tensor, **_: Any) -> dict[str, Tensor]:
            return {"input_ids": input_ids, "states": states}

        def forward(self, input_ids: Tensor, states: Tensor, **_: Any) -> Any:
            return CausalLMOutputWithPast(logits=plain_logits(model, states, input_ids))

    first = torch.full((len(states), 1), start)
    plain: Any = Plain()
    return plain.generate(first, states=states, use_cache=False, suppress_tokens=[PAD], **options)


def plain_logits(model: Coca, states: Tensor, ids: Tensor) -> Tensor:
    """Logits [B, L, V] of whole sequences [B, L] without padding, by torch's own attention."""
    weights, sizes = model.state_dict(), model.sizes
    length, heads = ids.shape[1], sizes.text.heads
    causal = torch.full((length, length), -torch.inf).triu(1)
    x = weights["text.token_embedding.weight"][ids] + weights["text.positional_embedding"][:length]
    for n in range(sizes.text.layers):
        x = _block(_inside(weights, f"text.transformer.resblocks.{n}."), x, None, causal, heads)
    for n in range(sizes.fusion.layers):
        x = _block(_inside(weights, f"text_decoder.resblocks.{n}."), x, None, causal, heads)
        x = _block(_inside(weights, f"text_decoder.cross_attn.{n}."), x, states, None, heads)
    last = _inside(weights, "text_decoder.")
    return _norm(last, "ln_final", x) @ last["text_projection"]


def _inside(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _norm(at: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], at[f"{name}.weight"], at[f"{name}.bias"])


def _block(at: Mapping[str, Tensor], x: Tensor, states: Tensor | None, mask: Tensor | None, heads: int) -> Tensor:
    query = _norm(at, "ln_1", x).transpose(0, 1)
    read = query if states is None else _norm(at, "ln_1_kv", states).transpose(0, 1)
    mixed, _ = F.multi_head_attention_forward(
        *(query, read, read, x.shape[-1], heads, at["attn.in_proj_weight"], at["attn.in_proj_bias"]),
        *(None, None, False, 0.0, at["attn.out_proj.weight"], at["attn.out_proj.bias"]),
        training=False,
        need_weights=False,
        attn_mask=mask,
    )
    x = x + mixed.transpose(0, 1)
    hidden = F.gelu(F.linear(_norm(at, "ln_2", x), at["mlp.c_fc.weight"], at["mlp.c_fc.bias"]))
    return x + F.linear(hidden, at["mlp.c_proj.weight"], at["mlp.c_proj.bias"])
