"""Every decoding option is checked once, by name."""

from __future__ import annotations

from typing import Any

import pytest

from vlrt.decode import DecodeOptions
from vlrt.errors import UsageError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rule", "best"),
        ("num_beams", 0),
        ("num_beams", 2.0),
        ("num_beams", True),
        ("num_beams", 1 << 20),
        ("num_return_sequences", -1),
        ("max_new_tokens", 0),
        ("min_new_tokens", -1),
        ("min_length", "5"),
        ("length_penalty", float("nan")),
        ("length_penalty", "long"),
        ("early_stopping", "always"),
        ("do_sample", 1),
        ("temperature", 0.0),
        ("temperature", -1),
        ("top_k", -1),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("typical_p", 0),
        ("repetition_penalty", 0),
        ("no_repeat_ngram_size", -2),
        ("bad_words_ids", [[]]),
        ("bad_words_ids", [3]),
        ("bad_words_ids", "dog"),
        ("suppress_tokens", [-1]),
        ("suppress_tokens", 5),
        ("begin_suppress_tokens", ["a"]),
        ("forced_bos_token_id", "a"),
        ("forced_eos_token_id", [1.5]),
        ("renormalize_logits", None),
        ("seed", -1),
        ("seed", 1 << 64),
    ],
)
def test_a_bad_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"`{name}` (is|has)"):
        DecodeOptions(**{name: value})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 2, "num_return_sequences": 3}, "at most `num_beams`, 2"),
        ({"num_return_sequences": 3}, "greedy decoding has one result"),
        ({"rule": "classic", "do_sample": True}, "does not sample"),
        ({"rule": "classic", "num_return_sequences": 2}, "at most `num_beams`"),
        ({"temperature": 0.7}, "`temperature` is set, but tokens are not sampled"),
        ({"top_k": 5}, "`top_k` is set"),
        ({"min_new_tokens": 9, "max_new_tokens": 5}, "`min_new_tokens` is 9"),
    ],
)
def test_options_that_do_not_go_together(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DecodeOptions(**given)


def test_values_as_json_has_them_become_plain_tuples() -> None:
    options = DecodeOptions(bad_words_ids=[[1, 2], [3]], suppress_tokens=[0], forced_eos_token_id=[2, 3])  # type: ignore[arg-type]
    assert options.bad_words_ids == ((1, 2), (3,))
    assert options.forced_eos_ids == (2, 3)
    assert hash(options) == hash(
        DecodeOptions(bad_words_ids=((1, 2), (3,)), suppress_tokens=(0,), forced_eos_token_id=(2, 3))
    )


def test_overrides_replace_defaults_and_none_keeps_them() -> None:
    defaults = {"num_beams": 3, "length_penalty": 0.7, "early_stopping": True}
    options = DecodeOptions.from_manifest(defaults, num_beams=20, length_penalty=None)
    assert (options.num_beams, options.length_penalty, options.early_stopping) == (20, 0.7, True)


def test_an_unknown_option_gets_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown decoding option `num_beam`") as caught:
        DecodeOptions.from_manifest({}, num_beam=3)
    assert caught.value.hint == "did you mean `num_beams`?"


def test_another_rule_brings_its_own_length_penalty() -> None:
    defaults = {"num_beams": 3, "length_penalty": 0.7, "early_stopping": True}
    classic = DecodeOptions.from_manifest(defaults, rule="classic")
    assert (classic.num_beams, classic.length_penalty, classic.early_stopping) == (3, 0.0, False)
    assert DecodeOptions.from_manifest(defaults, rule="classic", length_penalty=0.5).length_penalty == 0.5
    assert DecodeOptions.from_manifest(defaults, rule="hf").length_penalty == 0.7
    assert DecodeOptions.from_manifest({"rule": "classic", "length_penalty": 0.0}, rule="hf").length_penalty == 1.0


def test_warpers_of_the_bundle_go_with_its_sampling() -> None:
    defaults = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert DecodeOptions.from_manifest(defaults).temperature == 0.7
    assert DecodeOptions.from_manifest(defaults, do_sample=False).temperature == 1.0
    with pytest.raises(UsageError, match="`temperature` is set"):
        DecodeOptions.from_manifest(defaults, do_sample=False, temperature=0.5)


@pytest.mark.parametrize(
    "name", ["suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id", "forced_bos_token_id", "bad_words_ids"]
)
def test_ids_are_checked_against_the_vocabulary(name: str) -> None:
    value: Any = {"bad_words_ids": ((3, 10),), "forced_bos_token_id": 10}.get(name, (10,))
    options = DecodeOptions(**{name: value})
    options.check_vocabulary(11)
    with pytest.raises(UsageError, match=f"`{name}` has the id 10, expected 0 to 9"):
        options.check_vocabulary(10)
