"""YouTokenToMe's model files: ids as its rules give them, in order, word by word."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from vlrt.errors import VlrtError
from vlrt_export.yttm_tokenizer import is_yttm, read_yttm

PIECES = {"▁": 4, "а": 5, "к": 6, "о": 7, "т": 8, "!": 9}
RULES = [(6, 7, 10), (10, 8, 11), (4, 11, 12), (4, 5, 13), (8, 7, 14)]
"""ко, кот, ▁кот, ▁а, то."""


def model_file(path: Path, special: str = "1 0 2 3") -> Path:
    """As the library writes it: counts, characters, rules, special ids (unknown, padding, begin, end)."""
    lines = [f"{len(PIECES)} {len(RULES)}", *(f"{ord(c)} {i}" for c, i in PIECES.items())]
    lines += [" ".join(map(str, rule)) for rule in RULES]
    path.write_text("\n".join([*lines, special, ""]))
    return path


def expected(text: str) -> list[int]:
    """The rules by hand: the earliest rule that applies anywhere in a word, its leftmost place first."""
    found = []
    for word in text.lower().split():
        ids = [PIECES.get(character, 1) for character in f"▁{word}"]
        while True:
            pairs = list(itertools.pairwise(ids))
            rule = next((rule for rule in RULES if rule[:2] in pairs), None)
            if rule is None:
                break
            place = pairs.index(rule[:2])
            ids[place : place + 2] = [rule[2]]
        found += [i for n, i in enumerate(ids) if i != 1 or n == 0 or ids[n - 1] != 1]
    return found


@pytest.mark.parametrize("text", ["кот", "Кот  а КОТ!", "токот", "а", "котко тт", "кошка а", " ", "ток\tото"])
def test_ids_follow_the_rules(text: str, tmp_path: Path) -> None:
    path = model_file(tmp_path / "bpe.model")
    assert is_yttm(path)
    assert read_yttm(path, 20).encode(text).ids == expected(text)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "bpe.model"
    with pytest.raises(VlrtError, match="has ids up to 14, the model reads 10"):
        read_yttm(model_file(path), 10)
    path.write_text("6 5\n9601 4\n5 6 7 8\n")
    with pytest.raises(VlrtError, match="is not a model of YouTokenToMe"):
        read_yttm(path, 20)
    path.write_text('{"model": {}}')
    assert not is_yttm(path)
    assert not is_yttm(tmp_path)
