"""SentencePiece's files without its library, and its Unigram models, as T5's ``spiece.model``, as ``tokenizer.json``.

Field numbers are those of sentencepiece_model.proto (https://github.com/google/sentencepiece).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
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
UNIGRAM, PAIRS = 1, 2
CONTROL, USER_DEFINED = 3, 4
SPACE = "▁"


@dataclass(frozen=True)
class Piece:
    """A piece of text, its log-probability (or minus its rank, of pairs), and what it is for, e.g. `CONTROL`."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What a file holds.

    Args:
        pieces: by id.
        kind: `UNIGRAM`, `PAIRS` or another number.
        unknown: id of what stands for anything that no piece is.
        characters: a precompiled map of characters; empty: none are replaced.
    """

    pieces: tuple[Piece, ...]
    kind: int
    unknown: int
    characters: bytes


def read_unigram(path: Path, extra_ids: int = 100) -> Tokenizer:
    """T5's tokenizer.

    Args:
        extra_ids: sentinels ``<extra_id_…>`` behind the pieces, as T5 has them.

    Raises:
        VlrtError: the file cannot be read, or is no Unigram model.

    Source: reproduces the fast tokenizer that transformers makes of its slow `T5Tokenizer`, without the end it adds.
    """
    model = read_model(path)
    if not model.pieces or model.kind != UNIGRAM:
        raise VlrtError(f"`{path.name}` is not a Unigram model of SentencePiece", "give T5's own spiece.model")
    made = unigram([(piece.text, piece.score) for piece in model.pieces], model.unknown, model.characters, extra_ids)
    special = [piece.text for piece in model.pieces if piece.kind == CONTROL]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    user = [piece.text for piece in model.pieces if piece.kind == USER_DEFINED]
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in user])
    return made


def read_model(path: Path) -> SentencePieceModel:
    """Pieces and settings of a SentencePiece file.

    Raises:
        VlrtError: the file cannot be read, or is another.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            data = Reader(stream.fileno())
            parts = list(messages(data, 0, os.fstat(stream.fileno()).st_size))
            pieces = tuple(_piece(data, first, last) for number, first, last in parts if number == _PIECES)
            trainer = [numbers(data, first, last) for number, first, last in parts if number == _TRAINER]
            rules = [(first, last) for number, first, last in parts if number == _NORMALIZER]
            characters = b"".join(_character_maps(data, rules))
    except (OSError, ValueError) as error:
        raise VlrtError(f"`{path.name}` is not a SentencePiece model: {error}", "download it again") from None
    settings = trainer[0] if trainer else {}
    return SentencePieceModel(pieces, settings.get(_MODEL_TYPE, UNIGRAM), settings.get(_UNKNOWN_ID, 0), characters)


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
    spaces = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), SPACE)]
    tokenizer.normalizer = normalizers.Sequence([*rules, *spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in extra])
    return tokenizer


def _piece(data: Reader, first: int, last: int) -> Piece:
    text, score, position = "", 0.0, first
    for number, start, end in messages(data, first, last):
        if number == _PIECE:
            text, position = data.bytes(start, end).decode("utf-8"), end
    if data.bytes(position, position + 1) == _SCORE_TAG:
        (score,) = struct.unpack("<f", data.bytes(position + 1, position + 5))
    return Piece(text, score, numbers(data, first, last).get(_TYPE, 1))


def _character_maps(data: Reader, spans: list[tuple[int, int]]) -> Iterator[bytes]:
    for first, last in spans:
        for number, start, end in messages(data, first, last):
            if number == _CHARACTER_MAP:
                yield data.bytes(start, end)
