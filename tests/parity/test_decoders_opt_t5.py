"""OPT, LLaMA and T5 as our modules against transformers' classes, in every variant that checkpoints come in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from vlrt_export.blip2_layout import LANGUAGE, llama_layout, opt_layout, t5_decoder_layout, t5_encoder_layout
from vlrt_export.modules.attention_kv import KeysValues, Places, padding_mask
from vlrt_export.modules.llama import Llama, LlamaSizes
from vlrt_export.modules.opt import Opt, OptSizes
from vlrt_export.modules.t5 import T5Decoder, T5Encoder, T5Sizes, bucket_of_distance
from vlrt_export.weight_layout import build

VOCABULARY, POSITIONS, WIDTH, HEADS = 60, 40, 24, 3


def widen(model: Any) -> dict[str, Any]:
    """Random weights that matter, under the names they have within BLIP-2."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3 if parameter.ndim > 1 else 0.1)
            if "norm" in name and name.endswith("weight"):
                parameter += 1.0
    return {f"{LANGUAGE}{name}": tensor for name, tensor in model.eval().state_dict().items()}


def decode(module: Any, ids: Any, memory: Any = None, mask: Any = None) -> list[Any]:
    """Logits after a prompt of all but three tokens, and after each further one, from one cache."""
    sizes, rows, width = module.sizes, len(ids), ids.shape[1]
    empty = torch.zeros(rows, sizes.heads, POSITIONS, sizes.head_width)
    past, found = [KeysValues(empty, empty) for _ in range(sizes.layers)], []
    for start, end in ((0, width - 3), (width - 3, width - 2), (width - 2, width - 1), (width - 1, width)):
        position = torch.arange(start, end).expand(rows, -1)
        new = torch.full((rows,), end - start, dtype=torch.int32)
        places = Places(torch.full((rows,), end - 1, dtype=torch.int32), torch.tensor([end], dtype=torch.int32))
        with torch.no_grad():
            logits, past = module(module.embed(ids[:, start:end], position), new, places, past, memory, mask)
        found.append(logits)
    return found


def tokens(length: int, seed: int = 1) -> Any:
    return torch.randint(2, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        {"enable_bias": False, "_remove_final_layer_norm": True},
        {"tie_word_embeddings": False, "activation_function": "gelu"},
    ],
    ids=["as most", "as the size of 350 M", "without biases and last norm", "with a head of its own"],
)
def test_opt(variant: dict[str, Any]) -> None:
    options = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "ffn_dim": 40}
    options |= {"num_attention_heads": HEADS, "max_position_embeddings": POSITIONS} | variant
    config = transformers.OPTConfig(**options)
    model = transformers.OPTForCausalLM(config)
    tied = config.tie_word_embeddings
    sizes = OptSizes(
        VOCABULARY,
        POSITIONS,
        WIDTH,
        2,
        HEADS,
        40,
        activation=config.activation_function,
        embedding_width=config.word_embed_proj_dim,
        norm_first=config.do_layer_norm_before,
        final_norm=config.do_layer_norm_before and not config._remove_final_layer_norm,
    )
    module = build(lambda: Opt(sizes, tied), opt_layout(sizes, tied), widen(model), "opt")
    ids = tokens(9)
    with torch.no_grad():
        expected = model(ids).logits
    for place, logits in enumerate(decode(module, ids), 5):
        torch.testing.assert_close(logits, expected[:, place], atol=1e-4, rtol=1e-4)


def llama(variant: dict[str, Any]) -> tuple[Any, Llama]:
    options = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 40}
    options |= {"num_attention_heads": HEADS, "max_position_embeddings": POSITIONS} | variant
    config = transformers.LlamaConfig(**options)
    model = transformers.LlamaForCausalLM(config)
    tied = config.tie_word_embeddings
    sizes = LlamaSizes(VOCABULARY, POSITIONS, WIDTH, 2, HEADS, 40, epsilon=config.rms_norm_eps, theta=config.rope_theta)
    return model, build(lambda: Llama(sizes, tied), llama_layout(sizes, tied), widen(model), "llama")


@pytest.mark.parametrize(
    "variant",
    [{}, {"rope_theta": 50.0, "rms_norm_eps": 1e-2, "tie_word_embeddings": True}],
    ids=["as the first", "other rotations, tied words"],
)
def test_llama(variant: dict[str, Any]) -> None:
    model, module = llama(variant)
    ids = tokens(9)
    with torch.no_grad():
        expected = model(ids).logits
    for place, logits in enumerate(decode(module, ids), 5):
        torch.testing.assert_close(logits, expected[:, place], atol=1e-4, rtol=1e-4)


def test_llama_turns_by_a_row_s_own_positions() -> None:
    """Our rows stand at the left, those of transformers at the right, behind padding that counts for no position."""
    model, module = llama({})
    ids, short = tokens(7), 4
    padded = torch.stack([ids[0], torch.nn.functional.pad(ids[1, :short], (7 - short, 0))])
    mask = torch.ones_like(ids)
    mask[1, : 7 - short] = 0
    lengths = torch.tensor([7, short], dtype=torch.int32)
    empty = torch.zeros(2, HEADS, POSITIONS, WIDTH // HEADS)
    places = Places(lengths - 1, lengths[:1])
    with torch.no_grad():
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        expected = model(padded, attention_mask=mask, position_ids=position_ids).logits[:, -1]
        embedded = module.embed(ids, torch.arange(7).expand(2, -1))
        logits, _ = module(embedded, lengths, places, [KeysValues(empty, empty)] * 2)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "variant",
    [
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        {"feed_forward_proj": "relu", "tie_word_embeddings": True},
        {"num_decoder_layers": 1, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 10},
    ],
    ids=["Flan", "the first T5", "other depths and distances"],
)
def test_t5(variant: dict[str, Any]) -> None:
    options = {"vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**options | variant)
    model = transformers.T5ForConditionalGeneration(config)
    tied = config.tie_word_embeddings
    sizes = T5Sizes(
        VOCABULARY,
        WIDTH,
        config.num_decoder_layers,
        2,
        4,
        8,
        40,
        buckets=config.relative_attention_num_buckets,
        farthest=config.relative_attention_max_distance,
        activation=config.dense_act_fn,
        gated=config.is_gated_act,
        scaled_head=tied,
    )
    weights = widen(model)
    encoder = build(lambda: T5Encoder(sizes, 0), t5_encoder_layout(sizes), weights, "t5")
    decoder = build(lambda: T5Decoder(sizes, tied), t5_decoder_layout(sizes, tied), weights, "t5")
    ids, words, prefix = tokens(20), tokens(14, seed=2), torch.randn(2, 3, WIDTH)
    ids[1, 12:] = 0
    present = torch.cat([torch.ones(2, 3, dtype=torch.bool), ids != 0], 1)
    with torch.no_grad():
        embedded = torch.cat([prefix, model.shared(ids)], 1)
        expected = model(inputs_embeds=embedded, attention_mask=present.long(), decoder_input_ids=words)
        states, mask = encoder(prefix, ids)
        memory = decoder.memory(states)
    assert torch.equal(mask, padding_mask(present))
    kept = present[..., None]
    torch.testing.assert_close(states * kept, expected.encoder_last_hidden_state * kept, atol=1e-4, rtol=1e-4)
    for place, logits in enumerate(decode(decoder, words, memory, mask), 10):
        torch.testing.assert_close(logits, expected.logits[:, place], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 128), (8, 20), (12, 50)])
def test_distances_share_buckets_as_in_transformers(buckets: int, farthest: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(farthest + 40)
    expected = T5Attention._relative_position_bucket(-distance, False, buckets, farthest)
    found = torch.tensor(bucket_of_distance(buckets, farthest))[distance.clamp(max=farthest)]
    assert torch.equal(found, expected)
