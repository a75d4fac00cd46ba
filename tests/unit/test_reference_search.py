"""The plain search: against every sentence of a table model, and against transformers' own `generate`."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from vlrt_export.reference_search import SearchOptions, State, search

START, END, VOCABULARY, LONGEST = 1, 0, 4, 4


def _table(seed: int) -> Tensor:
    """Log-probabilities [position, previous, next]; without the position, permuted sentences would tie."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(LONGEST, VOCABULARY, VOCABULARY, generator=generator)).log_softmax(-1)


def _sentences(table: Tensor, length_penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """Every sentence that ends within the limit, or runs into it, with its score, best first."""
    found = []
    words = [word for word in range(VOCABULARY) if word != END]
    for length in range(1, LONGEST + 1):
        for body in product(words, repeat=length - 1):
            for last in [END] if length < LONGEST else range(VOCABULARY):
                tokens = (*body, last)
                total = sum(float(table[i, a, b]) for i, (a, b) in enumerate(zip((START, *tokens), tokens)))
                found.append((total / length**length_penalty, tokens))
    return sorted(found, reverse=True)


def _table_step(tables: Tensor, beams: int):
    images = torch.arange(len(tables)).repeat_interleave(beams)
    return lambda token, state: (tables[images, state[0][:, 0], token], (state[0] + 1,))


def _first(images: int) -> State:
    return (torch.zeros(images, 1, dtype=torch.long),)


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_classic_beam_finds_the_best_sentences_of_all(seed: int) -> None:
    table = _table(seed)
    beams = VOCABULARY**LONGEST
    options = SearchOptions(beams, LONGEST, 0.0, START, END, classic=True)
    # Wider than there are candidates in the first steps: the rest is minus infinity and never listed.
    found = search(_table_step(_padded(table), beams), _first(1), options)[0]
    ended = [s for s in _sentences(table, 0.0) if s[1][-1] == END]
    assert [f.tokens for f in found[: len(ended)]] == [tokens for _, tokens in ended]
    assert [f.score for f in found[: len(ended)]] == pytest.approx([score for score, _ in ended], abs=1e-5)


def _padded(table: Tensor) -> Tensor:
    """A vocabulary wide enough for `topk`, of words that never come."""
    wide = torch.zeros(1, LONGEST, 8, 8)
    wide[0, :, :VOCABULARY] = -torch.inf
    wide[0, :, :VOCABULARY, :VOCABULARY] = table
    return wide


@pytest.mark.parametrize("seed", range(5))
def test_greedy_follows_the_likeliest_word(seed: int) -> None:
    table = _table(seed)
    options = SearchOptions(1, LONGEST, 0.7, START, END)
    found = search(_table_step(table[None], 1), _first(1), options)[0]
    expected, word, total = [], START, 0.0
    while len(expected) < LONGEST and word != END:
        step = table[len(expected), word]
        word = int(step.argmax())
        total += float(step[word])
        expected.append(word)
    assert found[0].tokens == tuple(expected)
    assert found[0].score == pytest.approx(total / len(expected) ** 0.7, abs=1e-5)


def test_images_are_searched_independently() -> None:
    tables = torch.stack([_table(seed) for seed in range(3)])
    options = SearchOptions(2, LONGEST, 0.7, START, END)
    together = search(_table_step(tables, 2), _first(3), options)
    alone = [search(_table_step(table[None], 2), _first(1), options)[0] for table in tables]
    assert [[f.tokens for f in image] for image in together] == [[f.tokens for f in image] for image in alone]


@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.5])
def test_the_hf_rule_is_transformers_with_early_stopping(beams: int, length_penalty: float) -> None:
    torch.manual_seed(beams)
    config = GPT2Config(vocab_size=19, n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6)
    model = GPT2LMHeadModel(config).eval()

    def step(token: Tensor, state: State) -> tuple[Tensor, State]:
        ids = torch.cat([state[0], token[:, None]], 1)
        with torch.no_grad():
            return model(ids).logits[:, -1], (ids,)

    beam_search = {"num_return_sequences": beams, "length_penalty": length_penalty, "early_stopping": True}
    expected = model.generate(
        torch.full((2, 1), START),
        attention_mask=torch.ones(2, 1, dtype=torch.long),
        num_beams=beams,
        **(beam_search if beams > 1 else {}),
        max_new_tokens=10,
        eos_token_id=END,
        pad_token_id=END,
        do_sample=False,
    )
    options = SearchOptions(beams, 10, length_penalty, START, END)
    found = search(step, (torch.zeros(2, 0, dtype=torch.long),), options)
    rows = [torch.tensor(f.tokens) for image in found for f in image]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=END)
    assert padded.tolist() == expected[:, 1 : padded.shape[1] + 1].tolist()


def test_a_length_penalty_does_not_go_with_plain_sums() -> None:
    with pytest.raises(ValueError, match="plain sums"):
        SearchOptions(2, LONGEST, 0.7, START, END, classic=True)
