"""YouTokenToMe's model file, as ru-dalle uses it, as a `tokenizers` file: pairs merged in the order of the file."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vlrt.errors import VlrtError

_BEGINNING = "▁"
_SPECIAL = ("<UNK>", "<PAD>", "<BOS>", "<EOS>")


def is_yttm(path: Path) -> bool:
    """Whether a file begins as YouTokenToMe's model files do: two counts, then a character's code and id."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        lines = stream.read(256).split(b"\n")
    return len(lines) > 2 and all(len(line.split()) == 2 and line.replace(b" ", b"").isdigit() for line in lines[:2])


def read_yttm(path: Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model file; text is made lowercase first, as ru-dalle does.

    Args:
        vocabulary: ids that the model has for words.

    Raises:
        VlrtError: the file is damaged, or has more ids.

    Source: reproduces VKCOM/YouTokenToMe 1.0.6.
    """
    try:
        lines = iter(path.read_text("ascii").splitlines())
        characters, rules = map(int, next(lines).split())
        pieces: dict[int, str] = {}
        for _ in range(characters):
            code, number = map(int, next(lines).split())
            pieces[number] = chr(code)
        merges = []
        for _ in range(rules):
            left, right, number = map(int, next(lines).split())
            merges.append((pieces[left], pieces[right]))
            pieces.setdefault(number, pieces[left] + pieces[right])
        special = [int(part) for part in next(lines).split()]
    except (ValueError, KeyError, StopIteration, OverflowError) as error:
        raise VlrtError(f"`{path.name}` is not a model of YouTokenToMe: {error!r}", "download it again") from None
    words = {text: number for number, text in pieces.items()}
    words |= {name: number for name, number in zip(_SPECIAL, special) if number >= 0}
    if len(special) != len(_SPECIAL) or special[0] < 0 or max(words.values()) >= vocabulary:
        what = f"`{path.name}` has ids up to {max(words.values())}, the model reads {vocabulary}"
        raise VlrtError(what, "give the model's own tokenizer")
    return _tokenizer(words, merges)


def _tokenizer(words: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=merges, unk_token=_SPECIAL[0], fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_BEGINNING, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement=_BEGINNING, prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL[1:] if name in words])
    return tokenizer
