"""SentencePiece's Unigram models, as T5's ``spiece.model``, as one ``tokenizer.json``; read without its library.

Field numbers are those of sentencepiece_model.proto (https://github.com/google/sentencepiece).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vlrt.errors import VlrtError
from vlrt.protobuf import Reader, messages, numbers

FILE = "spiece.model"
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _TYPE = 1, 3
_SCORE_TAG = b"\x15"
"""Field 2 of a piece, a float of four bytes."""
_MODEL_TYPE, _UNKNOWN_ID = 3, 40
_CHARACTER_MAP = 2
_UNIGRAM = 1
_CONTROL, _USER_DEFINED = 3, 4
_SPACE = "▁"


def read_unigram(path: Path, extra_ids: int = 100) -> Tokenizer:
    """T5's tokenizer.

    Args:
        extra_ids: sentinels ``<extra_id_…>`` behind the pieces, as T5 has them.

    Raises:
        VlrtError: the file cannot be read, or is no Unigram model.

    Source: reproduces the fast tokenizer that transformers makes of its slow `T5Tokenizer`, without the end it adds.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            data = Reader(stream.fileno())
            parts = list(messages(data, 0, os.fstat(stream.fileno()).st_size))
            pieces = [_piece(data, first, last) for number, first, last in parts if number == _PIECES]
            trainer = [numbers(data, first, last) for number, first, last in parts if number == _TRAINER]
            rules = [(first, last) for number, first, last in parts if number == _NORMALIZER]
            characters = b"".join(_character_maps(data, rules))
    except (OSError, ValueError) as error:
        raise VlrtError(f"`{path.name}` is not a SentencePiece model: {error}", "download it again") from None
    kind = trainer[0].get(_MODEL_TYPE, _UNIGRAM) if trainer else _UNIGRAM
    if not pieces or kind != _UNIGRAM:
        raise VlrtError(f"`{path.name}` is not a Unigram model of SentencePiece", "give T5's own spiece.model")
    unknown = trainer[0].get(_UNKNOWN_ID, 0) if trainer else 0
    made = unigram([(text, score) for text, score, _ in pieces], unknown, characters, extra_ids)
    special = [text for text, _, sort in pieces if sort == _CONTROL]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    user = [text for text, _, sort in pieces if sort == _USER_DEFINED]
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in user])
    return made


def unigram(pieces: list[tuple[str, float]], unknown: int, characters: bytes = b"", extra_ids: int = 0) -> Tokenizer:
    """A tokenizer around pieces and their scores.

    Args:
        unknown: id of what stands for anything else.
        characters: SentencePiece's precompiled map of characters; empty: none are replaced.
    """
    extra = [f"<extra_id_{i}>" for i in range(extra_ids - 1, -1, -1)]
    try:
        tokenizer = Tokenizer(models.Unigram([*pieces, *((text, 0.0) for text in extra)], unk_id=unknown))
        rules = [normalizers.Precompiled(characters)] if characters else []
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise VlrtError(f"the pieces of the tokenizer do not fit: {error}", "download it again") from None
    spaces = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), _SPACE)]
    tokenizer.normalizer = normalizers.Sequence([*rules, *spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in extra])
    return tokenizer


def _piece(data: Reader, first: int, last: int) -> tuple[str, float, int]:
    """Text, score and type of a piece."""
    text, score, position = "", 0.0, first
    for number, start, end in messages(data, first, last):
        if number == _PIECE:
            text, position = data.bytes(start, end).decode("utf-8"), end
    if data.bytes(position, position + 1) == _SCORE_TAG:
        (score,) = struct.unpack("<f", data.bytes(position + 1, position + 5))
    return text, score, numbers(data, first, last).get(_TYPE, 1)


def _character_maps(data: Reader, spans: list[tuple[int, int]]) -> Iterator[bytes]:
    for first, last in spans:
        for number, start, end in messages(data, first, last):
            if number == _CHARACTER_MAP:
                yield data.bytes(start, end)
