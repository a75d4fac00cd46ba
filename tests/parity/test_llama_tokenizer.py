"""LLaMA's `tokenizer.model` against the tokenizer that transformers makes of it, and the ids its settings name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import LlamaConverter, generate_merges
from transformers.utils import sentencepiece_model_pb2_new as sentencepiece

from vlrt.errors import VlrtError
from vlrt_export.blip2_plan import ids_of_tokenizer
from vlrt_export.blip2_sizes import Blip2Ids
from vlrt_export.sentencepiece_pairs import read_pairs
from vlrt_export.text_files import find_tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MERGED = ["▁d", "og", "▁dog", "▁t", "he", "▁the", "in", "▁s", "no", "▁sno", "▁snow", "ow", "▁▁", "th"]
LETTERS = ["▁", *"dogthesnwipa?."]
TEXTS = ["the dog in the snow", "  two   spaces ", "a</s>the", "Größe ✓", "dog?", "<user> dog", "", "the\nsnow"]


def model(pieces: list[str] | None = None, kind: int = 2) -> Any:
    """As SentencePiece trains it: unknown, start, end, bytes, then pairs, whose score is minus their rank."""
    found = sentencepiece.ModelProto()
    kinds = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((byte, 6) for byte in BYTES), ("<user>", 4)]
    for text, sort in kinds:
        found.pieces.add(piece=text, score=0.0, type=sort)
    for rank, text in enumerate(MERGED + LETTERS if pieces is None else pieces):
        found.pieces.add(piece=text, score=-float(rank), type=1)
    found.trainer_spec.model_type = kind
    found.trainer_spec.byte_fallback = True
    return found


def save(folder: Path, proto: Any) -> Path:
    path = folder / "tokenizer.model"
    path.write_bytes(proto.SerializeToString())
    return path


class Extractor:
    """Transformers asks the sentencepiece library for the pieces alone."""

    def __init__(self, path: str) -> None:
        self.proto = sentencepiece.ModelProto()
        self.proto.ParseFromString(Path(path).read_bytes())

    def extract(self, scores: list[tuple[str, float]]) -> tuple[dict[str, int], list[tuple[str, str]]]:
        vocab = {piece.piece: number for number, piece in enumerate(self.proto.pieces)}
        return vocab, generate_merges(vocab, scores)


def theirs(path: Path, legacy: bool) -> Tokenizer:
    names = ["<unk>", "<s>", "</s>"]
    slow = SimpleNamespace(vocab_file=str(path), legacy=legacy, convert_ids_to_tokens=names.__getitem__)
    converter = type("Converter", (LlamaConverter,), {"SpmExtractor": Extractor})
    found: Tokenizer = converter(slow).converted()
    return found


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_and_text_are_those_of_transformers(tmp_path: Path, legacy: bool) -> None:
    path = save(tmp_path, model())
    found, expected = read_pairs(path, legacy), theirs(path, legacy)
    assert found.get_vocab() == expected.get_vocab()
    for text in TEXTS:
        ids = expected.encode(text).ids
        assert found.encode(text).ids == ids, text
        assert found.decode(ids) == expected.decode(ids), text
    assert len(found.encode("the dog").ids) == 2, "the pairs were merged"


def test_the_folder_s_settings_are_heeded(tmp_path: Path) -> None:
    path = save(tmp_path, model())
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": false}')
    found = find_tokenizer(None, str(tmp_path), 400)
    assert found.encode("a</s>the").ids == theirs(path, False).encode("a</s>the").ids
    assert found.encode("a</s>the").ids != theirs(path, True).encode("a</s>the").ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xff\xff", "`tokenizer.model` is not a SentencePiece model"),
        (b"", "is not a pair model of SentencePiece"),
        (model(kind=1).SerializeToString(), "is not a pair model of SentencePiece"),
        (model().SerializeToString()[:-4000], "is not a"),
    ],
)
def test_files_that_are_none_of_llama_s(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(VlrtError, match=message):
        read_pairs(tmp_path / "tokenizer.model")


def test_start_end_and_padding_are_the_tokenizer_s(tmp_path: Path) -> None:
    """InstructBLIP's: `</s>` starts and ends, `[PAD]` was added; the configuration's numbers are of no tokenizer."""
    tokenizer = read_pairs(save(tmp_path, model()))
    tokenizer.add_special_tokens(["[PAD]"])
    ids = Blip2Ids(start=0, ends=(1,), pad=0, image=5)
    named = {"bos_token": {"content": "</s>"}, "eos_token": "</s>", "pad_token": "[PAD]"}
    found = ids_of_tokenizer(ids, tokenizer, named)
    assert (found.start, found.ends, found.pad, found.image) == (2, (2, 1), tokenizer.token_to_id("[PAD]"), 5)
    assert ids_of_tokenizer(ids, tokenizer, {}) == ids
    assert ids_of_tokenizer(ids, tokenizer, {"bos_token": "<other>", "eos_token": None}) == ids
