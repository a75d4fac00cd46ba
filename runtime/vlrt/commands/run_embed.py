"""`vlrt run embed`: vectors of photographs and sentences, and their similarities."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from vlrt.commands.inputs import photographs
from vlrt.commands.options import model_options, output_options
from vlrt.commands.output import Progress, ResultLines
from vlrt.errors import ImageError, UsageError, VlrtError
from vlrt.image import SUFFIXES
from vlrt.whole_file import write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlrt.tasks.embed import Embedder

_BATCH = 8
_LARGEST_TABLE = 40
"""Inputs beyond which similarities are not printed: a table of squares helps nobody then."""


@dataclass
class _Vectors:
    """Embeddings with the names of what they belong to, photographs first."""

    images: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [*self.images, *self.texts]


@click.command(short_help="Vectors of photographs and sentences, and their similarities.")
@click.argument("inputs", nargs=-1)
@model_options
@click.option("--text", "texts", multiple=True, help="A sentence, also where it looks like a file.")
@output_options
def embed(
    inputs: Sequence[str],
    model: str | None,
    device: str,
    threads: int,
    texts: Sequence[str],
    as_json: bool,
    out: Path | None,
) -> None:
    """Embed INPUTS: files, folders and patterns are photographs, anything else is a sentence.

    Prints the table of cosines. --out FILE.npz keeps the vectors as the arrays `images` and `texts` with their names,
    any other --out FILE as JSON lines, one per input.
    """
    from vlrt.tasks import load

    paths, sentences = _sorted_out(inputs)
    sentences += texts
    if not paths and not sentences:
        raise UsageError("there is nothing to embed", 'vlrt run embed photo.jpg "a dog on grass"')
    embedder: Embedder = load("embed", model, device=device, threads=threads)
    as_npz = out is not None and out.suffix == ".npz"
    with ResultLines(as_json, None if as_npz else out, resume=False) as lines:
        found = _Vectors()
        _embed_photographs(embedder, paths, found, lines)
        if sentences:
            found.texts += sentences
            found.rows += list(embedder(texts=sentences).texts)
        vectors = np.stack(found.rows) if found.rows else np.zeros((0, embedder.encoder.spec.dimension), np.float32)
        if as_npz and out is not None:
            _write_npz(out, found, vectors, embedder.encoder.spec.scale)
        _report(found, vectors, lines)


def _sorted_out(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Photographs and sentences; a name that ends like a picture is one, so that a missing file is reported."""
    paths: dict[Path, None] = {}
    sentences: list[str] = []
    for given in inputs:
        is_pattern = glob.has_magic(given) and bool(glob.glob(given, recursive=True))
        if os.path.exists(given) or is_pattern or given.lower().endswith(SUFFIXES):
            paths.update(dict.fromkeys(photographs([given])))
        else:
            sentences.append(given)
    return list(paths), sentences


def _embed_photographs(embedder: Embedder, paths: Sequence[Path], found: _Vectors, lines: ResultLines) -> None:
    progress = Progress(len(paths), "photographs")
    progress(0)
    for start in range(0, len(paths), _BATCH):
        batch = paths[start : start + _BATCH]
        _embed_batch(embedder, batch, found, lines)
        progress(start + len(batch))


def _embed_batch(embedder: Embedder, batch: Sequence[Path], found: _Vectors, lines: ResultLines) -> None:
    """Embeds a batch, or each photograph by itself where one of them cannot be read."""
    try:
        vectors = embedder(list(batch)).images
    except ImageError as error:
        if len(batch) == 1:
            lines.failure(str(batch[0]), error)
            return
        for path in batch:
            _embed_batch(embedder, [path], found, lines)
        return
    found.images += map(str, batch)
    found.rows += list(vectors)


def _report(found: _Vectors, vectors: NDArray[np.float32], lines: ResultLines) -> None:
    names = found.names
    cosines = vectors @ vectors.T if len(names) <= _LARGEST_TABLE else None
    for place, name in enumerate(names):
        kind = "image" if place < len(found.images) else "text"
        value: dict[str, Any] = {kind: name, "vector": [round(float(v), 7) for v in vectors[place]]}
        if cosines is not None:
            value["similarity"] = [round(float(v), 6) for v in cosines[place]]
        lines.result(value, _table_row(name, cosines[place], place) if cosines is not None else name)
    if cosines is None and not lines.as_json:
        click.echo(f"{len(names)} inputs embedded; their table is left out beyond {_LARGEST_TABLE}", err=True)


def _table_row(name: str, cosines: NDArray[np.float32], place: int) -> str:
    """Cosines with the inputs up to this one, in their order; the matrix is symmetric."""
    return " ".join(f"{value:7.4f}" for value in cosines[: place + 1]) + f"  {name}"


def _write_npz(out: Path, found: _Vectors, vectors: NDArray[np.float32], scale: float) -> None:
    count = len(found.images)
    content = io.BytesIO()
    np.savez(
        content,
        images=vectors[:count],
        texts=vectors[count:],
        image_names=np.asarray(found.images, dtype=np.str_),
        text_names=np.asarray(found.texts, dtype=np.str_),
        scale=np.float32(scale),
    )
    try:
        write_whole(out, content.getvalue())
    except OSError as error:
        raise VlrtError(f"`{out}` cannot be written: {error.strerror}", "choose another with --out") from None
