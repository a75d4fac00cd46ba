"""Our loop, driving a NumPy GPT-2 through our caches, against `generate` of transformers on tiny random models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from vlrt.decode import DecodeOptions, Hypothesis, Loop, LoopShape, RowTensor, StepBuffers, Task, decode

VOCABULARY, WIDTH, HEADS, LAYERS, POSITIONS = 61, 32, 4, 2, 48
END = 7


def build(seed: int) -> Any:
    """A GPT-2 whose weights are wide enough that outputs vary and sequences end at different lengths."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=END,
        tie_word_embeddings=False,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.35)
        # The end id is likely now and then: its logit leans on what all states share.
        model.lm_head.weight[END] += 0.45 * model.transformer.ln_f.bias
    return model


class NumpyGpt2:
    """The forward pass (Radford et al. 2019) over the loop's buffers; keys and values live in its caches."""

    def __init__(self, model: Any) -> None:
        self.weights = {name: value.numpy() for name, value in model.state_dict().items()}
        self.calls: list[tuple[int, int, int]] = []

    def loop(self, images: int, rows: int, width: int) -> Loop:
        shape = (HEADS, POSITIONS, WIDTH // HEADS)
        names = [f"{kind}.{layer}" for layer in range(LAYERS) for kind in ("key", "value")]
        caches = tuple(RowTensor(name, shape) for name in names)
        records = (RowTensor("logits_seen", (VOCABULARY,)),)
        return Loop(LoopShape(VOCABULARY, images, rows, POSITIONS, width, caches=caches, records=records))

    def __call__(self, step: StepBuffers) -> None:
        self.calls.append((step.rows, step.width, step.images))
        w = self.weights
        x = w["transformer.wte.weight"][step.tokens] + w["transformer.wpe.weight"][step.positions]
        for layer in range(LAYERS):
            x = x + self._attend(step, layer, self._norm(x, f"transformer.h.{layer}.ln_1"))
            inner = self._linear(self._norm(x, f"transformer.h.{layer}.ln_2"), f"transformer.h.{layer}.mlp.c_fc")
            gelu = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            x = x + self._linear(gelu, f"transformer.h.{layer}.mlp.c_proj")
        last = self._norm(x, "transformer.ln_f")[np.arange(step.rows), step.new_lengths - 1]
        step.logits[:] = last @ w["lm_head.weight"].T
        step.records["logits_seen"][:] = step.logits

    def _norm(self, x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _linear(self, x: Any, name: str) -> Any:
        return x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _attend(self, step: StepBuffers, layer: int, x: Any) -> Any:
        name = f"transformer.h.{layer}.attn"
        queries, keys, values = np.split(self._linear(x, f"{name}.c_attn"), 3, -1)
        key_cache, value_cache = step.caches[f"key.{layer}"], step.caches[f"value.{layer}"]
        heads = (HEADS, WIDTH // HEADS)
        out = np.empty_like(queries)
        for row in range(step.rows):
            past = int(step.past_lengths[row])
            for i in range(int(step.new_lengths[row])):
                key_cache[row, :, past + i] = keys[row, i].reshape(heads)
                value_cache[row, :, past + i] = values[row, i].reshape(heads)
                k, v = key_cache[row, :, : past + i + 1], value_cache[row, :, : past + i + 1]
                scores = np.einsum("hd,hsd->hs", queries[row, i].reshape(heads), k) / math.sqrt(heads[1])
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                out[row, i] = np.einsum("hs,hsd->hd", weights, v).reshape(-1)
            out[row, int(step.new_lengths[row]) :] = 0
        return self._linear(out, f"{name}.c_proj")


@dataclass
class Case:
    """One call of both implementations; `ours` and `theirs` hold per image its hypotheses as (tokens, score)."""

    ours: list[list[Hypothesis]]
    theirs: list[list[tuple[tuple[int, ...], float]]]
    calls: list[tuple[int, int, int]]


def run_both(model: Any, prompts: list[list[int]], ends: tuple[int, ...] = (END,), **options: Any) -> Case:
    parsed = DecodeOptions(**options)
    step = NumpyGpt2(model)
    loop = step.loop(len(prompts), len(prompts) * parsed.rows_per_image, max(map(len, prompts)))
    ours = decode(loop, step, Task(prompts, ends), parsed)
    return Case(ours, reference(model, prompts, ends, options, parsed), step.calls)


def reference(
    model: Any, prompts: list[list[int]], ends: tuple[int, ...], options: dict[str, Any], parsed: DecodeOptions
) -> list[list[tuple[tuple[int, ...], float]]]:
    torch.set_num_threads(1)
    torch.manual_seed(parsed.seed)
    given = {name: _lists(value) for name, value in options.items() if name not in ("seed", "rule")}
    ids = torch.tensor(prompts)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0],
        return_dict_in_generate=True,
        output_scores=True,
        **given,
    )
    returned = parsed.num_return_sequences
    scores = found.sequences_scores.tolist() if parsed.num_beams > 1 else [math.nan] * len(found.sequences)
    sequences = [(_trim(s.tolist()[len(prompts[0]) :], ends), x) for s, x in zip(found.sequences, scores)]
    return [sequences[i : i + returned] for i in range(0, len(sequences), returned)]


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _trim(tokens: list[int], ends: tuple[int, ...]) -> tuple[int, ...]:
    stops = [i for i, token in enumerate(tokens) if token in ends]
    return tuple(tokens[: stops[0] + 1] if stops else tokens)


def assert_same(case: Case) -> None:
    """Equal tokens and scores; where two hypotheses tie within float error, equal scores suffice."""
    for ours, theirs in zip(case.ours, case.theirs):
        assert len(ours) == len(theirs)
        for mine, (tokens, score) in zip(ours, theirs):
            if math.isnan(score):
                assert mine.tokens == tokens
                continue
            assert mine.score == pytest.approx(score, abs=1e-4, rel=1e-6)
            margin = min((abs(score - other) for t, other in theirs if t != tokens), default=math.inf)
            assert mine.tokens == tokens or margin < 1e-4


def prompts(seed: int, images: int, length: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return rng.integers(8, VOCABULARY, (images, length)).tolist()


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return [build(seed) for seed in range(6)]


@pytest.mark.parametrize(("images", "length"), [(1, 1), (3, 4)])
@pytest.mark.parametrize("num_beams", [1, 3, 5])
def test_plain(models: list[Any], num_beams: int, images: int, length: int) -> None:
    endings = set()
    for seed, model in enumerate(models):
        case = run_both(
            model, prompts(seed, images, length), num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=14
        )
        assert_same(case)
        assert case.calls[0] == (images, length, images)
        endings |= {h.finished for image in case.ours for h in image}
    assert endings == {True, False}, "the models should end some sequences and not others, or little is tested"


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 2.0, -1.0])
def test_stop_rules(models: list[Any], early_stopping: bool | str, length_penalty: float) -> None:
    for seed, model in enumerate(models):
        assert_same(
            run_both(
                model,
                prompts(seed, 2, 2),
                num_beams=4,
                num_return_sequences=3,
                max_new_tokens=12,
                early_stopping=early_stopping,
                length_penalty=length_penalty,
            )
        )


RULES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2},
    {"min_length": 9},
    {"min_new_tokens": 6},
    {"min_new_tokens": 2, "min_length": 9},
    {"bad_words_ids": ((3,), (END,), (11, 12), (20, 21, 22))},
    {"suppress_tokens": tuple(range(10, 40))},
    {"begin_suppress_tokens": tuple(range(8, 50))},
    {"forced_bos_token_id": 9},
    {"forced_eos_token_id": END},
    {"forced_bos_token_id": 9, "begin_suppress_tokens": tuple(range(8, 50)), "min_new_tokens": 3},
    {"renormalize_logits": True, "suppress_tokens": (10, 11, 12), "repetition_penalty": 1.3},
]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "+".join(rule))
def test_processors(models: list[Any], rule: dict[str, Any], num_beams: int) -> None:
    for seed, model in enumerate(models[:3]):
        for length in (1, 3):
            assert_same(
                run_both(
                    model,
                    prompts(seed, 2, length),
                    num_beams=num_beams,
                    num_return_sequences=num_beams,
                    max_new_tokens=10,
                    **rule,
                )
            )


def test_several_end_ids(models: list[Any]) -> None:
    for seed, model in enumerate(models):
        for num_beams in (1, 4):
            case = run_both(
                model,
                prompts(seed, 2, 2),
                (END, 30, 45),
                num_beams=num_beams,
                num_return_sequences=num_beams,
                max_new_tokens=12,
                early_stopping=True,
            )
            assert_same(case)


WARPERS: list[dict[str, Any]] = [
    {"top_k": 0},
    {"top_k": 5, "temperature": 0.6},
    {"top_k": 0, "top_p": 0.6},
    {"top_k": 20, "top_p": 0.8, "temperature": 1.5, "repetition_penalty": 1.4},
    {"top_k": 0, "min_p": 0.1},
    {"top_k": 0, "typical_p": 0.5},
]


@pytest.mark.parametrize("warper", WARPERS, ids=lambda warper: "+".join(warper))
def test_sampling_draws_the_same_tokens(models: list[Any], warper: dict[str, Any]) -> None:
    drawn = set()
    for seed, model in enumerate(models):
        case = run_both(
            model, prompts(seed, 2, 3), num_return_sequences=3, do_sample=True, max_new_tokens=10, seed=seed, **warper
        )
        assert_same(case)
        drawn |= {h.tokens for image in case.ours for h in image}
    assert len(drawn) > 6


@pytest.mark.parametrize("warper", WARPERS[:3], ids=lambda warper: "+".join(warper))
def test_beam_sampling_draws_the_same_tokens(models: list[Any], warper: dict[str, Any]) -> None:
    for seed, model in enumerate(models):
        assert_same(
            run_both(
                model,
                prompts(seed, 2, 3),
                num_beams=3,
                num_return_sequences=2,
                do_sample=True,
                max_new_tokens=8,
                seed=seed,
                **warper,
            )
        )


def test_different_prompt_lengths_equal_single_runs(models: list[Any]) -> None:
    """transformers pads ragged prompts at the left, so the reference is each image alone."""
    ragged = [[9], [12, 30, 41, 8], [33, 10], [50, 51, 52]]
    for model in models[:3]:
        step = NumpyGpt2(model)
        options = DecodeOptions(num_beams=3, num_return_sequences=3, max_new_tokens=10)
        together = decode(step.loop(4, 12, 4), step, Task(ragged, (END,)), options)
        for prompt, found in zip(ragged, together):
            alone = reference(
                model, [prompt], (END,), {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 10}, options
            )
            assert_same(Case([found], alone, []))


def test_records_are_of_the_step_that_chose_the_word(models: list[Any]) -> None:
    options = DecodeOptions(num_beams=4, num_return_sequences=4, max_new_tokens=9, length_penalty=0.0)
    step = NumpyGpt2(models[0])
    for hypothesis in decode(step.loop(1, 4, 2), step, Task([[9, 10]], (END,)), options)[0]:
        seen = hypothesis.records["logits_seen"]
        assert seen.shape == (len(hypothesis.tokens), VOCABULARY)
        log_p = seen - np.log(np.exp(seen).sum(-1, keepdims=True))
        chosen = log_p[np.arange(len(seen)), hypothesis.tokens]
        assert chosen.sum() == pytest.approx(hypothesis.log_probability, abs=1e-4)


def test_finished_images_leave_the_batch(models: list[Any]) -> None:
    for seed, model in enumerate(models):
        case = run_both(model, prompts(seed, 5, 2), num_beams=2, max_new_tokens=20, early_stopping=True)
        assert_same(case)
        images = [call[2] for call in case.calls]
        assert images == sorted(images, reverse=True)
        if images[-1] < images[0]:
            return
    pytest.fail("no model ended its images at different steps")
