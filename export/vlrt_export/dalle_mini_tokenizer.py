"""DALL·E mini's text as ids: byte-pair encoding of lower-case ASCII, as one ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from vlrt.errors import VlrtError
from vlrt_export.checkpoints import Checkpoint, read_json

START, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
_SPACE = "Ġ"
_HINT = "min-dalle's folder has both beside encoder.pt and decoder.pt"


def open_tokenizer(checkpoint: Checkpoint, suffix: str = "") -> Tokenizer:
    """The tokenizer of ``vocab.json`` and ``merges.txt`` beside the weights.

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
    return make_tokenizer(read_json(vocabulary), lines)


def make_tokenizer(vocabulary: Mapping[str, int], merges: Sequence[str]) -> Tokenizer:
    """A tokenizer whose ids are those of min-dalle.

    Text is put into lower case, what is not ASCII is left out (emoji too, which the reference spells out by name),
    and words are what stands between blanks, each behind the sign of a blank.

    Args:
        vocabulary: id by piece.
        merges: pairs of pieces, the first to be joined first.

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
    tokenizer.normalizer = normalizers.Sequence(
        [
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
