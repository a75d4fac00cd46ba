"""DALL·E mini's text as ids: byte-pair encoding of lower-case ASCII, as one ``tokenizer.json``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from vlrt.errors import VlrtError, VlrtWarning
from vlrt_export.checkpoints import Checkpoint, read_json

START, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
_SPACE = "Ġ"
_HINT = "min-dalle's folder has both beside encoder.pt and decoder.pt"


class EmojiWarning(VlrtWarning):
    """The tokenizer leaves emoji out that the reference spells out."""


def open_tokenizer(checkpoint: Checkpoint, suffix: str = "") -> Tokenizer:
    """The tokenizer of ``vocab.json`` and ``merges.txt`` beside the weights.

    Emoji are spelled out by name if the package `emoji` is there, else left out with a warning.

    Args:
        suffix: of both names' stems, as in ``vocab_mini.json``.

    Raises:
        VlrtError: one is missing or damaged.
    """
    vocabulary, merges = checkpoint.file(f"vocab{suffix}.json"), checkpoint.file(f"merges{suffix}.txt")
    if vocabulary is None or merges is None:
        missing = f"merges{suffix}.txt" if vocabulary else f"vocab{suffix}.json"
        raise VlrtError(f"`{checkpoint.origin}` has no file `{missing}`", _HINT)
    try:
        lines = merges.read_text("utf-8").split("\n")[1:-1]
    except (OSError, ValueError) as error:
        raise VlrtError(f"`{merges.name}` cannot be read: {error}", _HINT) from None
    names = emoji_names()
    if not names:
        told = "emoji in prompts will count for nothing: `pip install emoji` before the export spells them out"
        warnings.warn(told, EmojiWarning, stacklevel=2)
    return make_tokenizer(read_json(vocabulary), lines, names)


def emoji_names() -> dict[str, str]:
    """The English name of every emoji, as the reference writes it; empty without the package `emoji`."""
    if find_spec("emoji") is None:
        return {}
    table = import_module("emoji").EMOJI_DATA
    return {sign: str(entry["en"]).strip(":") for sign, entry in table.items()}


def make_tokenizer(
    vocabulary: Mapping[str, int], merges: Sequence[str], emoji: Mapping[str, str] | None = None
) -> Tokenizer:
    """A tokenizer whose ids are those of min-dalle.

    Emoji become their names, text is put into lower case, what is not ASCII is left out, and words are what stands
    between blanks, each behind the sign of a blank.

    Args:
        vocabulary: id by piece.
        merges: pairs of pieces, the first to be joined first.
        emoji: name by sign.

    Raises:
        VlrtError: pieces and merges that do not fit each other.

    Source: reproduces ``TextTokenizer`` of kuprel/min-dalle 0.4.11, whose merges and splits these are.
    """
    pairs = [tuple(line.split()) for line in merges]
    if not all(len(pair) == 2 for pair in pairs) or not all(type(i) is int for i in vocabulary.values()):
        raise VlrtError("the vocabulary is no table of ids, or its merges are no pairs", _HINT)
    missing = [token for token in (START, PAD, END, UNKNOWN) if token not in vocabulary]
    if missing:
        raise VlrtError(f"the vocabulary lacks `{missing[0]}`", _HINT)
    joined = [(first, second) for first, second in pairs]
    _check_pieces(vocabulary, joined)
    try:
        tokenizer = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=joined, unk_token=UNKNOWN))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise VlrtError(f"the vocabulary and its merges do not fit: {error}", _HINT) from None
    longest_first = sorted((emoji or {}).items(), key=lambda pair: (-len(pair[0]), pair[0]))
    tokenizer.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(sign, name) for sign, name in longest_first),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[^\x00-\x7f]"), ""),
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" +"), _SPACE),
            normalizers.Prepend(_SPACE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
    return tokenizer


def _check_pieces(vocabulary: Mapping[str, int], pairs: Sequence[tuple[str, str]]) -> None:
    """Every merge joins two known pieces to a known one."""
    for first, second in pairs:
        if not {first, second, first + second} <= vocabulary.keys():
            raise VlrtError(f"the merge `{first} {second}` has a piece that the vocabulary lacks", _HINT)
