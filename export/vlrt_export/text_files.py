"""A checkpoint's tokenizer as one ``tokenizer.json``: WordPiece of BERT, pairs of GPT-2, RoBERTa and LLaMA."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from vlrt.errors import VlrtError
from vlrt_export import sentencepiece_pairs
from vlrt_export.checkpoints import Checkpoint, read_json

FILE = "tokenizer.json"
_HINT = (
    "give `--tokenizer` with tokenizer.json, or a folder that holds it, vocab.txt, tokenizer.model, or vocab.json and "
    "merges.txt"
)


def find_tokenizer(checkpoint: Checkpoint | None, given: str | None, vocabulary: int) -> Tokenizer:
    """The tokenizer the user names, else the checkpoint's.

    Args:
        given: a file or folder, or `None`.
        vocabulary: of the model; no id may exceed it.

    Raises:
        VlrtError: there is none, it is damaged, or it is another model's.
    """
    tokenizer = _open(checkpoint, given)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size > vocabulary:
        raise VlrtError(f"the tokenizer has {size} ids, the model {vocabulary}", "give the model's own")
    return tokenizer


def start_and_end(tokenizer: Tokenizer, start: str, end: str) -> tuple[int, int]:
    """Ids of the tokens that a text stands between.

    Raises:
        VlrtError: the tokenizer lacks one.
    """
    ids = [tokenizer.token_to_id(token) for token in (start, end)]
    if None in ids:
        raise VlrtError(f"the tokenizer lacks `{start}` or `{end}`", "give the model's own with `--tokenizer`")
    return ids[0], ids[1]


def stand_in(vocabulary: int, special: dict[int, str]) -> Tokenizer:
    """A WordPiece tokenizer of letters, of a vocabulary's size: random weights need ids, not words.

    Args:
        special: tokens that leave no trace in decoded text, by id.
    """
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?.,:"
    pieces = iter([*letters, *(f"##{letter}" for letter in letters)])
    tokens = [special.get(i) or next(pieces, f"[unused{i}]") for i in range(vocabulary)]
    unknown = special.get(min(special, default=0), tokens[0])
    tokenizer = _word_piece({token: i for i, token in enumerate(tokens)}, unknown, lowercase=True)
    tokenizer.add_special_tokens(list(special.values()))
    return tokenizer


def _open(checkpoint: Checkpoint | None, given: str | None) -> Tokenizer:
    path = Path(given).expanduser() if given else checkpoint.folder if checkpoint else None
    if path is None:
        raise VlrtError("the checkpoint brings no tokenizer", _HINT)
    if not path.exists():
        raise VlrtError(f"the tokenizer `{given}` does not exist", _HINT)
    if path.is_file():
        return _from_json(path) if path.suffix == ".json" else _from_vocab(path, {})
    config = read_json(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    if (path / FILE).is_file():
        return _from_json(path / FILE)
    if (path / "vocab.txt").is_file():
        return _from_vocab(path / "vocab.txt", config)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        return _from_pairs(path, config)
    if (path / sentencepiece_pairs.FILE).is_file():
        return sentencepiece_pairs.read_pairs(path / sentencepiece_pairs.FILE, config.get("legacy") is not False)
    raise VlrtError(f"`{path.name}` holds no tokenizer", _HINT)


def _from_json(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise VlrtError(f"`{path.name}` is not a tokenizer: {error}", "download it again") from None


def _from_vocab(path: Path, config: dict[str, object]) -> Tokenizer:
    """BERT's ``vocab.txt``, one token a line."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise VlrtError(f"`{path.name}` is not a vocabulary: {error}", "download it again") from None
    vocab = {token: i for i, token in enumerate(lines)}
    if "[UNK]" not in vocab:
        raise VlrtError(f"`{path.name}` lacks `[UNK]`, so it is not BERT's vocabulary", _HINT)
    tokenizer = _word_piece(vocab, "[UNK]", lowercase=bool(config.get("do_lower_case", True)))
    tokenizer.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocab])
    return tokenizer


def _word_piece(vocab: dict[str, int], unknown: str, lowercase: bool) -> Tokenizer:
    """Source: reproduces the fast tokenizer that transformers makes of its slow `BertTokenizer`."""
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _from_pairs(folder: Path, config: dict[str, object]) -> Tokenizer:
    """``vocab.json`` and ``merges.txt`` of GPT-2 and RoBERTa.

    Source: reproduces the fast tokenizers that transformers makes of its slow `GPT2Tokenizer` and `RobertaTokenizer`.
    """
    vocab = read_json(folder / "vocab.json")
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in merges):
        raise VlrtError("`merges.txt` has lines that are no pairs", "download it again")
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[(a, b) for a, b in merges]))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise VlrtError(f"the vocabulary and its merges do not fit: {error}", "download them again") from None
    space = bool(config.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [t for t in ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>") if t in vocab]
    )
    return tokenizer
