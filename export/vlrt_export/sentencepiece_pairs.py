"""SentencePiece's pair models, as LLaMA's ``tokenizer.model``, as one ``tokenizer.json``; read without its library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from vlrt.errors import VlrtError
from vlrt_export.sentencepiece_file import CONTROL, PAIRS, SPACE, USER_DEFINED, Piece, read_model

FILE = "tokenizer.model"


def read_pairs(path: Path, legacy: bool = True) -> Tokenizer:
    """LLaMA's tokenizer, without the start it adds.

    Args:
        legacy: whether a space also stands before text that follows a special token, as ``tokenizer_config.json`` says.

    Raises:
        VlrtError: the file cannot be read, or is no pair model.

    Source: reproduces the fast tokenizer that transformers makes of its slow `LlamaTokenizer`.
    """
    model = read_model(path)
    if not model.pieces or model.kind != PAIRS:
        raise VlrtError(f"`{path.name}` is not a pair model of SentencePiece", "give LLaMA's own tokenizer.model")
    vocab = {piece.text: i for i, piece in enumerate(model.pieces)}
    try:
        unknown = model.pieces[model.unknown].text
        pairs = models.BPE(vocab, merges(model.pieces, vocab), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise VlrtError(f"the pieces of `{path.name}` do not fit: {error}", "download it again") from None
    tokenizer = Tokenizer(pairs)
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    bytes_to_text = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*bytes_to_text, decoders.Strip(content=" ", left=1)])
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        found = [piece.text for piece in model.pieces if piece.kind == kind]
        tokenizer.add_tokens([AddedToken(text, normalized=False, special=special) for text in found])
    return tokenizer


def merges(pieces: Sequence[Piece], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece; those of likelier pieces first.

    Source: reproduces ``generate_merges`` of transformers' ``convert_slow_tokenizer``.
    """
    found = []
    for piece in pieces:
        cuts = ((piece.text[:i], piece.text[i:]) for i in range(1, len(piece.text)))
        known = sorted((vocab[a], vocab[b], a, b) for a, b in cuts if a in vocab and b in vocab)
        found += [(piece.score, len(a), len(b), a, b) for _, _, a, b in known]
    found.sort(key=lambda pair: pair[:3], reverse=True)
    return [(a, b) for *_, a, b in found]
