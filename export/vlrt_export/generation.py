"""A checkpoint's generation configuration as a bundle's default decoding options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlrt.decode import DecodeOptions
from vlrt.errors import UsageError, VlrtError

_SAME_NAME = (
    *("num_beams", "num_return_sequences", "min_new_tokens", "min_length", "length_penalty", "early_stopping"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
    *("forced_bos_token_id", "forced_eos_token_id", "renormalize_logits"),
)
_WARPERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
_LIBRARY_LENGTH = 20
"""`max_length` of transformers, the prompt included, where nothing says otherwise."""


def decode_defaults(config: Mapping[str, Any], start: int = 1) -> dict[str, Any]:
    """Default options from a ``generation_config.json``, or from a ``config.json`` of before there was one.

    Args:
        config: the parsed file; unknown and empty values are left out.
        start: tokens that stand before the first generated one, which transformers' `max_length` counts.

    Raises:
        VlrtError: values that no decoder can serve.
    """
    found = {name: config[name] for name in _SAME_NAME if config.get(name) is not None}
    longest = config.get("max_length")
    found["max_new_tokens"] = config.get("max_new_tokens") or max((longest or _LIBRARY_LENGTH) - start, 1)
    if not found.get("do_sample", False):
        found = {name: value for name, value in found.items() if name not in _WARPERS}
    try:
        DecodeOptions.from_manifest(found)
    except UsageError as error:
        raise VlrtError(f"the checkpoint's generation configuration: {error.what}", "correct the file") from None
    plain = DecodeOptions()
    return {name: value for name, value in found.items() if name == "max_new_tokens" or value != getattr(plain, name)}
