"""A prompt bank: the embeddings of labels, encoded once and kept in the user's cache."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder, Vectors
from vlrt.errors import BundleError, UsageError, VlrtWarning
from vlrt.prompts import LearnedPrompts, Prompt, check_labels, check_templates, fill
from vlrt.whole_file import write_whole

_FORMAT = 1
_ROWS = 32
"""Rows per run of the text tower."""


class PromptBankWarning(VlrtWarning):
    """A prompt bank could not be kept; labels will be encoded again next time."""


@dataclass(frozen=True, eq=False)
class PromptBank:
    """Labels and their embeddings.

    Args:
        labels: at least two.
        vectors: float32 [labels, D] of length one.
        cached: whether they came from the cache.
    """

    labels: tuple[str, ...]
    vectors: Vectors
    cached: bool = False


@dataclass(frozen=True, eq=False)
class PromptRequest:
    """What a bank is made of: labels, and either templates or learned prompts; checked once.

    Raises:
        UsageError, VlrtError: see `check_labels`, `check_templates` and `LearnedPrompts`.
    """

    labels: tuple[str, ...]
    templates: tuple[str, ...] = ()
    learned: LearnedPrompts | None = None

    def __post_init__(self) -> None:
        check_labels(self.labels)
        if self.learned is None:
            check_templates(self.templates)
        elif self.templates:
            raise UsageError("templates and learned prompts exclude each other", "leave one of them out")

    def key(self, bundle: Bundle) -> str:
        """A digest of everything the embeddings depend on: the text side's files, labels, templates, vectors."""
        described = bundle.manifest
        files = [described.graphs[role] for role in described.embed.text] if described.embed else []
        names = sorted({name for graph in files for name in (graph.file, *graph.external)})
        names += [described.text.tokenizer] if described.text else []
        parts: dict[str, object] = {
            "format": _FORMAT,
            "files": {name: bundle.digest(name) for name in names},
            "text": repr(described.text),
            "labels": self.labels,
            "templates": self.templates,
        }
        if self.learned:
            digest = hashlib.sha256(self.learned.vectors.tobytes()).hexdigest()
            parts["learned"] = [digest, list(self.learned.vectors.shape), self.learned.position]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def open_bank(encoder: DualEncoder, request: PromptRequest, cache: Path | None = None) -> PromptBank:
    """The embeddings of a request's labels, from the cache or encoded now and kept there.

    A file in the cache that is damaged or of another model is encoded again and replaced.

    Args:
        encoder: of the bundle whose text tower is used.
        cache: folder of the banks; the user's cache folder where `None`.

    Raises:
        VlrtError: learned prompts do not fit the bundle or the labels.
    """
    folder = cache or zoo.cache_folder() / "prompts"
    path = folder / f"{request.key(encoder.bundle)}.npz"
    stored = _read(path, (len(request.labels), encoder.spec.dimension))
    if stored is not None:
        return PromptBank(request.labels, stored, cached=True)
    vectors = encode_labels(encoder, request)
    _write(path, vectors)
    return PromptBank(request.labels, vectors)


def encode_labels(encoder: DualEncoder, request: PromptRequest) -> Vectors:
    """Embeddings of labels [labels, D]: per label the mean over its templates, at length one again.

    Source: Radford et al. (arXiv 2103.00020), section 3.1.4, and the prompt engineering notebook of openai/CLIP.
    """
    if request.learned is None:
        sentences = [fill(template, label) for label in request.labels for template in request.templates]
        rows = [tuple(encoder.codec.ids(sentence)) for sentence in sentences]
        prompts = [Prompt(ids, (-1,) * len(ids)) for ids in rows]
    else:
        if not encoder.spec.learned_context:
            raise BundleError(f"the bundle `{encoder.bundle.name}` takes no learned prompts", "use a CLIP bundle")
        request.learned.check(request.labels, encoder.spec.token_width)
        prompts = [request.learned.prompt(label, encoder.codec) for label in request.labels]
    encoded = _encode(encoder, prompts, request.learned)
    means = encoded.reshape(len(request.labels), -1, encoded.shape[1]).mean(1)
    normalised: Vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
    return normalised.astype(np.float32)


def _encode(encoder: DualEncoder, prompts: Sequence[Prompt], learned: LearnedPrompts | None) -> Vectors:
    """Embeddings in the order of the prompts; rows of like length run together, so that little is padding."""
    vectors = np.zeros((len(prompts), encoder.spec.dimension), np.float32)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].ids))
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        ids = encoder.codec.pad([prompts[row].ids for row in rows])
        if learned is None:
            vectors[rows] = encoder.token_ids(ids)
        else:
            context = np.ascontiguousarray(learned.of_labels(rows))
            vectors[rows] = encoder.token_ids(ids, context, _index([prompts[row].index for row in rows], ids.shape[1]))
    return vectors


def _index(rows: Sequence[Sequence[int]], width: int) -> NDArray[np.int64]:
    index = np.full((len(rows), width), -1, np.int64)
    for places, row in zip(index, rows):
        places[: len(row)] = row
    return index


def _read(path: Path, shape: tuple[int, int]) -> Vectors | None:
    """The stored vectors, or `None` where the file is absent or is not what was written."""
    try:
        # From memory: NumPy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            vectors: Vectors = stored["vectors"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError):
        return None
    if vectors.shape != shape or vectors.dtype != np.float32:
        return None
    return vectors if np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3) else None


def _write(path: Path, vectors: Vectors) -> None:
    """A cache that cannot be written costs time, not the result."""
    content = io.BytesIO()
    np.savez(content, vectors=vectors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    except OSError as error:
        what = f"the prompt bank cannot be kept in `{path.parent}`: {error.strerror}"
        warnings.warn(what, PromptBankWarning, stacklevel=2)
