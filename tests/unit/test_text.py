"""Sentences to ids as the manifest says: start, end, cut with a warning, padded at the end."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vlrt.bundle import Bundle
from vlrt.errors import BundleError, UsageError
from vlrt.manifest import AnswerSpec
from vlrt.text import PromptReader, TextCodec, TextTruncatedWarning

A, THE, DOG, CAT = 4, 5, 6, 7


@pytest.fixture
def codec(tiny_bundle_folder: Path) -> TextCodec:
    return TextCodec.open(Bundle.open(tiny_bundle_folder))


def with_spec(codec: TextCodec, **changes: Any) -> TextCodec:
    return TextCodec(codec.tokenizer, replace(codec.spec, **changes))


def test_start_words_end(codec: TextCodec) -> None:
    assert codec.ids("the dog") == [1, THE, DOG, 2]
    assert codec.ids("  The   DOG ") == [1, THE, DOG, 2]
    assert codec.ids("the zebra") == [1, THE, 3, 2]


def test_without_start_or_end(codec: TextCodec) -> None:
    assert with_spec(codec, start_id=None).ids("a cat") == [A, CAT, 2]
    assert with_spec(codec, end_id=None).ids("a cat") == [1, A, CAT]
    assert with_spec(codec, start_id=None, end_id=None).ids("a cat") == [A, CAT]


def test_padding(codec: TextCodec) -> None:
    ids = codec.encode(["the dog", "a"])
    assert ids.dtype == np.int64
    assert ids.tolist() == [[1, THE, DOG, 2], [1, A, 2, 0]]
    assert with_spec(codec, pad_to_context=True, context=6).encode(["a"]).tolist() == [[1, A, 2, 0, 0, 0]]
    assert codec.pad([]).shape == (0, 0)


def test_an_encoder_may_be_given_no_prompt(codec: TextCodec) -> None:
    assert codec.prompt_row("") == codec.prompt_row("  ") == [1, 2]
    assert codec.prompt_row("the dog") == codec.ids("the dog")


def test_prompts_for_every_encoder_of_the_chain(codec: TextCodec, tiny_bundle_folder: Path) -> None:
    bundle = Bundle.open(tiny_bundle_folder)
    second = replace(codec.spec, input="query_ids", start_id=None)
    asked = replace(bundle.manifest, answer=AnswerSpec("encoder"), instruction=second)
    reader = PromptReader(SimpleNamespace(manifest=asked, file=bundle.file, name="tiny"), codec)  # type: ignore[arg-type]
    found = {name: ids.tolist() for name, ids in reader.arrays(["the dog", ""]).items()}
    assert found == {codec.spec.input: [[1, THE, DOG, 2], [1, 2, 0, 0]], "query_ids": [[THE, DOG, 2], [2, 0, 0]]}
    assert reader.prompts([9], ["the dog", ""]) == [[9], [9]]
    asked = replace(asked, answer=AnswerSpec("prompt"))
    both = PromptReader(SimpleNamespace(manifest=asked, file=bundle.file, name="tiny"), codec)  # type: ignore[arg-type]
    assert list(both.arrays(["the dog"])) == ["query_ids"]
    assert both.prompts([9], ["the dog", ""]) == [[9, THE, DOG], [9]]
    continued = PromptReader(bundle, codec)
    assert continued.arrays(["the dog"]) == {}
    assert continued.prompts([9], ["the dog", ""]) == [[9, THE, DOG], [9]]


def test_what_is_too_long_is_cut_and_the_end_kept(codec: TextCodec) -> None:
    short = with_spec(codec, context=5)
    with pytest.warns(
        TextTruncatedWarning, match=r"`the dog a cat dog` has 5 tokens, the model reads 3; the rest was cut: `cat dog`"
    ):
        assert short.ids("the dog a cat dog") == [1, THE, DOG, A, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert short.ids("the dog a") == [1, THE, DOG, A, 2]
    with pytest.warns(TextTruncatedWarning, match="the model reads 1"):
        assert short.ids("the dog", reserve=2) == [1, THE, 2]
    with pytest.raises(UsageError, match="3 reserved places leave no room"):
        short.ids("the dog", reserve=3)


def test_a_long_text_is_shortened_in_the_warning_and_stays_one_line(codec: TextCodec) -> None:
    with pytest.warns(TextTruncatedWarning) as caught:
        codec.ids("dog\n" * 1000)
    assert len(str(caught[0].message)) < 200
    assert "\n" not in str(caught[0].message)


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_nothing_is_no_sentence(codec: TextCodec, text: str) -> None:
    with pytest.raises(UsageError, match="empty text"):
        codec.encode(["a dog", text])


def test_halves_of_surrogate_pairs(codec: TextCodec) -> None:
    """As a command line gives them for bytes that are not UTF-8."""
    with pytest.raises(UsageError, match="not a text the tokenizer reads"):
        codec.ids("a \udcff dog")


def test_decoding_leaves_special_ids_out(codec: TextCodec) -> None:
    assert codec.decode([1, THE, DOG, 2, 0]) == "the dog"
    assert codec.decode([]) == ""
    assert codec.words([THE, DOG]) == ["the", "dog"]
    assert codec.decode(np.array([THE, CAT])) == "the cat"


def test_the_tokenizers_own_lengths_do_not_count(tiny: ModuleType, tiny_copy: Path) -> None:
    value = json.loads((tiny_copy / "tokenizer.json").read_text("utf-8"))
    value["truncation"] = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    value["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Left",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    (tiny_copy / "tokenizer.json").write_text(json.dumps(value), "utf-8")
    tiny.reseal(tiny_copy)
    assert TextCodec.open(Bundle.open(tiny_copy)).ids("the dog a cat") == [1, THE, DOG, A, CAT, 2]


def test_a_bundle_without_text(tiny_bundle_folder: Path) -> None:
    bundle = Bundle.open(tiny_bundle_folder)
    bare = Bundle(bundle.path, replace(bundle.manifest, text=None, embed=None))
    with pytest.raises(BundleError, match="`tiny` has no tokenizer"):
        TextCodec.open(bare)
