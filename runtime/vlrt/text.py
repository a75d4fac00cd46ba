"""Sentences to ids and back, as the manifest says."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vlrt.bundle import Bundle
from vlrt.errors import BundleError, UsageError, VlrtWarning, one_line
from vlrt.manifest import TextSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextTruncatedWarning(VlrtWarning):
    """A sentence was longer than the model's context and was cut."""


class TextCodec:
    """A bundle's tokenizer with its special ids; use `TextCodec.open`."""

    def __init__(self, tokenizer: Tokenizer, spec: TextSpec) -> None:
        self.tokenizer = tokenizer
        self.spec = spec

    @classmethod
    def open(cls, bundle: Bundle, spec: TextSpec | None = None) -> TextCodec:
        """Loads the bundle's tokenizer, or that of another section than `text`.

        Raises:
            BundleError: the bundle has none, or its file is damaged.
        """
        from tokenizers import Tokenizer

        spec = spec or bundle.manifest.text
        if spec is None:
            raise BundleError(f"the bundle `{bundle.name}` has no tokenizer")
        path = bundle.file(spec.tokenizer)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
            raise BundleError(f"`{spec.tokenizer}` is not a tokenizer: {error}", "export the bundle again") from None
        # The manifest alone says how long and how padded; a tokenizer file may carry settings of its own.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, spec)

    def ids(self, sentence: str, *, reserve: int = 0) -> list[int]:
        """Ids of one sentence with start and end id; cut to the context less `reserve` with a warning, the end kept.

        Raises:
            UsageError: the sentence is empty.
        """
        if not sentence.strip():
            raise UsageError("an empty text has no meaning to compare", "give at least one word")
        return self._between(self._encode(sentence), sentence, reserve)

    def prompt_row(self, prompt: str) -> list[int]:
        """As `ids`, for an encoder that may also be given no prompt at all: start and end id then stand alone."""
        return self._between(self._encode(prompt) if prompt.strip() else [], prompt, 0)

    def _between(self, inner: list[int], sentence: str, reserve: int) -> list[int]:
        spec = self.spec
        specials = (spec.start_id is not None) + (spec.end_id is not None)
        room = spec.context - specials - reserve
        if room < 1:
            raise UsageError(f"{reserve} reserved places leave no room for words in a context of {spec.context}")
        if len(inner) > room:
            shown = sentence if len(sentence) <= 40 else sentence[:37] + "..."
            lost = self.decode(inner[room:])
            lost = lost if len(lost) <= 60 else lost[:57] + "..."
            what = f"`{shown}` has {len(inner)} tokens, the model reads {room}; the rest was cut: `{lost}`"
            warnings.warn(one_line(what), TextTruncatedWarning, stacklevel=2)
        start = [] if spec.start_id is None else [spec.start_id]
        end = [] if spec.end_id is None else [spec.end_id]
        return [*start, *inner[:room], *end]

    def prompt_ids(self, start: Sequence[int], text: str) -> list[int]:
        """Ids of the beginning of a sentence that a decoder is to continue: its start ids and those of `text`."""
        return [*start, *(self._encode(text) if text.strip() else [])]

    def _encode(self, sentence: str) -> list[int]:
        try:
            sentence.encode("utf-8")  # older tokenizers take halves of surrogate pairs for something else
            ids = list(self.tokenizer.encode(sentence, add_special_tokens=False).ids)
        except Exception:  # noqa: BLE001 - tokenizers raises plain kinds, e.g. for halves of surrogate pairs
            raise UsageError(f"{sentence[:40]!r} is not a text the tokenizer reads", "write it in UTF-8") from None
        if ids and max(ids) >= self.spec.vocabulary:
            what = f"the tokenizer gives the id {max(ids)}, the model has a vocabulary of {self.spec.vocabulary}"
            raise BundleError(what, "export the bundle again")
        return ids

    def encode(self, sentences: Sequence[str]) -> NDArray[np.int64]:
        """Ids of sentences, padded at the end to the longest of them: int64 [N, L]."""
        return self.pad([self.ids(sentence) for sentence in sentences])

    def pad(self, rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """Rows of ids padded at the end with the pad id: int64 [N, L]."""
        width = self.spec.context if self.spec.pad_to_context else max(map(len, rows), default=0)
        padded = np.full((len(rows), width), self.spec.pad_id, dtype=np.int64)
        for row, ids in zip(padded, rows):
            row[: len(ids)] = ids
        return padded

    def decode(self, ids: Sequence[int]) -> str:
        """The sentence of generated ids; special ids leave no trace."""
        return str(self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)).strip()

    def words(self, ids: Sequence[int]) -> list[str]:
        """Each id's own text, for showing what belongs to which step."""
        return [self.tokenizer.decode([int(i)], skip_special_tokens=False).strip() for i in ids]


class PromptReader:
    """Prompts and questions as inputs of a bundle's decoding chain, and as what its decoder continues.

    Args:
        codec: that of the bundle's text section.
    """

    def __init__(self, bundle: Bundle, codec: TextCodec) -> None:
        described = bundle.manifest
        self._codec = codec
        self._continued = not (described.answer and described.answer.question == "encoder")
        self._codecs = [] if self._continued else [codec]
        if described.instruction:
            self._codecs.append(TextCodec.open(bundle, described.instruction))

    def prompts(self, start: Sequence[int], prompts: Sequence[str]) -> list[list[int]]:
        """What the decoder continues: its start ids, and the prompts behind them unless the chain alone reads them."""
        if self._continued:
            return [self._codec.prompt_ids(start, prompt) for prompt in prompts]
        return [list(start)] * len(prompts)

    def arrays(self, prompts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Ids by the chain's inputs, int64 [N, L] each; empty where it takes none."""
        return {c.spec.input: c.pad([c.prompt_row(prompt) for prompt in prompts]) for c in self._codecs}
