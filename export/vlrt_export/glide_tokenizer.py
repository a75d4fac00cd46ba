"""GLIDE's byte-pair tokenizer as one ``tokenizer.json``: GPT-2's merges on text in lower case."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from vlrt.errors import VlrtError

END = "<|endoftext|>"
_PAIRS = (("encoder.json.gz", "vocab.bpe.gz"), ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
"""The original's names, packed and unpacked, and those GPT-2's identical files have on the hub."""

_HINT = "put `encoder.json.gz` and `vocab.bpe.gz` of openai/glide-text2im beside the weights, or name their folder"


def find_tokenizer(folder: Path | None, given: str | None) -> Tokenizer:
    """The tokenizer of the folder the user names with ``--tokenizer``, else of the checkpoints' own.

    Raises:
        VlrtError: there is none, or its files are damaged.
    """
    place = Path(given).expanduser() if given else folder
    if place is None or not place.is_dir():
        raise VlrtError(f"there is no folder `{given}` with GLIDE's tokenizer", _HINT)
    for vocabulary, merges in _PAIRS:
        if (place / vocabulary).is_file() and (place / merges).is_file():
            return _from_files(place / vocabulary, place / merges)
    raise VlrtError(f"`{place.name}` holds no tokenizer", _HINT)


def stand_in() -> Tokenizer:
    """One id a byte and the end: random weights need ids, not words."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    return lowercase_pairs({token: i for i, token in enumerate([*tokens, END])}, ())


def lowercase_pairs(vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> Tokenizer:
    """GLIDE's tokenizer around a vocabulary and its merges; no text, typed or not, becomes the end's id.

    Source: reproduces ``Encoder`` of openai/glide-text2im.
    """
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges)))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _from_files(vocabulary: Path, merges: Path) -> Tokenizer:
    try:
        known = json.loads(_text(vocabulary))
        lines = [line.split() for line in _text(merges).split("\n") if line and not line.startswith("#version")]
        return lowercase_pairs(known, [(first, second) for first, second in lines])
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        what = f"`{vocabulary.name}` and `{merges.name}` are not GLIDE's tokenizer: {error}"
        raise VlrtError(what, "download them again") from None


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
