"""CLIP's byte-pair tokenizer as one ``tokenizer.json``, from whatever a checkpoint brings or the user names."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vlrt.errors import VlrtError
from vlrt.manifest import TextSpec
from vlrt_export import hub
from vlrt_export.checkpoints import Checkpoint, read_json

START, END = "<|startoftext|>", "<|endoftext|>"
FILE = "tokenizer.json"
_MERGES = 49152 - 256 - 2
"""Merges of the original vocabulary; its file holds more."""

_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_PACKAGES = ("clip", "open_clip")
"""Installed packages that bring the original vocabulary; they are looked into, never imported."""

_HUB = "openai/clip-vit-base-patch32"
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True)
class ClipTokenizer:
    """A tokenizer, its padding id, and a note on where it comes from (empty: it came with the weights)."""

    tokenizer: Tokenizer
    pad_id: int
    note: str = ""

    def text_spec(self, context: int, vocabulary: int) -> TextSpec:
        """The manifest's text section for a model of that context and vocabulary.

        Raises:
            VlrtError: the tokenizer lacks CLIP's start or end, or its ids exceed the model's vocabulary.
        """
        start, end = (self.tokenizer.token_to_id(token) for token in (START, END))
        if start is None or end is None:
            raise VlrtError(f"the tokenizer lacks `{START}` or `{END}`", "give CLIP's own with `--tokenizer`")
        size = max(self.tokenizer.get_vocab().values()) + 1
        if size > vocabulary:
            raise VlrtError(
                f"the tokenizer has {size} ids, the model {vocabulary}", "give the model's own with `--tokenizer`"
            )
        return TextSpec(FILE, context, vocabulary, self.pad_id, start, end)

    def json(self) -> bytes:
        """The ``tokenizer.json`` to put into the bundle."""
        return str(self.tokenizer.to_str()).encode()


def find_tokenizer(checkpoint: Checkpoint | None, given: str | None) -> ClipTokenizer:
    """The tokenizer the user names, else the checkpoint's, else the original one of an installed package or the hub.

    Args:
        given: a ``tokenizer.json``, the original vocabulary file, or a folder that holds a tokenizer.

    Raises:
        VlrtError: none of these is to be had, or the one named is not CLIP's.
    """
    if given:
        path = Path(given).expanduser()
        if not path.exists():
            raise VlrtError(f"the tokenizer `{given}` does not exist", f"give tokenizer.json or {_VOCABULARY_FILE}")
        return _from_folder(path, path.name) if path.is_dir() else _from_file(path)
    if checkpoint and checkpoint.folder and _has_tokenizer(checkpoint.folder):
        return _from_folder(checkpoint.folder, "")
    for package in _PACKAGES:
        spec = find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            if (Path(folder) / _VOCABULARY_FILE).is_file():
                found = _from_file(Path(folder) / _VOCABULARY_FILE)
                return ClipTokenizer(found.tokenizer, found.pad_id, f"vocabulary of the package `{package}`")
    try:
        return _from_folder(hub.fetch(_HUB, weights=False).folder, _HUB)
    except VlrtError as error:
        raise VlrtError(
            "the checkpoint brings no vocabulary, and none is installed or on the hub",
            f"give `--tokenizer` with tokenizer.json or {_VOCABULARY_FILE} (from the repository openai/CLIP)",
        ) from error


def stand_in(vocabulary: int) -> ClipTokenizer:
    """A byte-level tokenizer without merges, of a vocabulary's size: random weights need ids, not words.

    Raises:
        VlrtError: the vocabulary has no room for the 256 bytes twice, and start and end.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet)]
    if vocabulary < len(tokens) + 2:
        raise VlrtError(f"a vocabulary of {vocabulary} is too small, expected at least {len(tokens) + 2}")
    vocab = {token: index for index, token in enumerate([*tokens, START, END])}
    return ClipTokenizer(byte_pair(vocab, []), 0, "byte-level stand-in, not CLIP's vocabulary")


def byte_pair(vocab: Mapping[str, int], merges: Iterable[tuple[str, str]]) -> Tokenizer:
    """CLIP's tokenizer around a vocabulary and its merges.

    Source: reproduces the fast tokenizer that transformers makes of its slow `CLIPTokenizer`.
    """
    model = models.BPE(
        vocab=dict(vocab), merges=list(merges), continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    sep, cls = (END, vocab[END]), (START, vocab[START])
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=sep, cls=cls, add_prefix_space=False, trim_offsets=False
    )
    specials = [AddedToken(START, special=True, normalized=True), AddedToken(END, special=True, normalized=False)]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _has_tokenizer(folder: Path) -> bool:
    both = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return both or (folder / FILE).is_file() or (folder / _VOCABULARY_FILE).is_file()


def _from_folder(folder: Path, note: str) -> ClipTokenizer:
    if not _has_tokenizer(folder):
        raise VlrtError(f"`{folder.name}` holds no tokenizer", "expected tokenizer.json, or vocab.json and merges.txt")
    if (folder / FILE).is_file():
        found = _from_file(folder / FILE).tokenizer
    elif (folder / "vocab.json").is_file():
        vocab = read_json(folder / "vocab.json")
        found = _checked(vocab, _merge_lines(folder / "merges.txt"))
    else:
        return _from_file(folder / _VOCABULARY_FILE)
    return ClipTokenizer(found, _pad_id(folder, found), note)


def _merge_lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").strip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VlrtError(f"`{path.name}` cannot be read: {error}", "download it again") from None


def _from_file(path: Path) -> ClipTokenizer:
    if path.name.endswith(".gz"):
        # The original pads with zeros, which are ordinary ids; behind the end they change nothing.
        return ClipTokenizer(_original(path), 0, path.name)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise VlrtError(f"`{path.name}` is not a tokenizer: {error}", "download it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    pad = tokenizer.token_to_id(END)
    return ClipTokenizer(tokenizer, 0 if pad is None else pad, path.name)


def _original(path: Path) -> Tokenizer:
    """The vocabulary as openai/CLIP's ``SimpleTokenizer`` builds it: bytes, bytes at a word's end, merges, specials."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise VlrtError(f"`{path.name}` is not CLIP's vocabulary: {error}", "download it again") from None
    merges = [line.split() for line in lines[1 : _MERGES + 1]]
    alphabet = _byte_order()
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet), *("".join(pair) for pair in merges)]
    return _checked({token: i for i, token in enumerate([*tokens, START, END])}, lines)


def _checked(vocab: Mapping[str, Any], lines: list[str]) -> Tokenizer:
    """A tokenizer from a vocabulary and the lines of a merges file, whose first is a comment."""
    merges = [tuple(line.split()) for line in lines[1 : _MERGES + 1] if line.strip()]
    if START not in vocab or END not in vocab or not all(len(pair) == 2 for pair in merges):
        raise VlrtError("the vocabulary or its merges are not CLIP's", "download them again")
    try:
        return byte_pair(vocab, [(pair[0], pair[1]) for pair in merges])
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise VlrtError(f"the vocabulary and its merges do not fit: {error}", "download them again") from None


def _byte_order() -> list[str]:
    """The 256 byte symbols in the original's order: printable bytes first, then the others as code points from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(code) for code in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _pad_id(folder: Path, tokenizer: Tokenizer) -> int:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("pad_token")
            content = token.get("content") if isinstance(token, dict) else token
            found = tokenizer.token_to_id(content) if isinstance(content, str) else None
            if found is not None:
                return int(found)
    return int(tokenizer.token_to_id(END) or 0)
