"""A ``generation_config.json`` of transformers as decoding options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SAME_NAME = (
    *("num_beams", "num_return_sequences", "min_new_tokens", "min_length", "length_penalty", "early_stopping"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id", "renormalize_logits"),
)
_WARPERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_LIBRARY_LENGTH = 20
"""`max_length` of transformers, the prompt included, where nothing says otherwise."""


def decode_options(config: Mapping[str, Any], start: int = 1) -> dict[str, Any]:
    """Values for `vlrt.decode.DecodeOptions` by field name, not validated.

    Args:
        config: the parsed ``generation_config.json``, or a ``config.json`` of before there was one; unknown and empty
            values are left out, and those of sampling where it is off.
        start: tokens that stand before the first generated one, which transformers' `max_length` counts.
    """
    found = {name: config[name] for name in _SAME_NAME if config.get(name) is not None}
    longest = config.get("max_length")
    longest = longest if isinstance(longest, int) else _LIBRARY_LENGTH
    found["max_new_tokens"] = config.get("max_new_tokens") or max(longest - start, 1)
    if not found.get("do_sample", False):
        found = {name: value for name, value in found.items() if name not in _WARPERS}
    return found
