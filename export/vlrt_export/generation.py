"""A checkpoint's generation configuration as a bundle's default decoding options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlrt.decode import DecodeOptions
from vlrt.errors import UsageError, VlrtError
from vlrt.generation_config import decode_options


def decode_defaults(config: Mapping[str, Any], start: int = 1) -> dict[str, Any]:
    """Default options from a ``generation_config.json``, or from a ``config.json`` of before there was one.

    Args:
        config: the parsed file; unknown and empty values are left out.
        start: tokens that stand before the first generated one, which transformers' `max_length` counts.

    Raises:
        VlrtError: values that no decoder can serve.
    """
    found = decode_options(config, start)
    try:
        DecodeOptions.from_manifest(found)
    except UsageError as error:
        raise VlrtError(f"the checkpoint's generation configuration: {error.what}", "correct the file") from None
    plain = DecodeOptions()
    return {name: value for name, value in found.items() if name == "max_new_tokens" or value != getattr(plain, name)}
