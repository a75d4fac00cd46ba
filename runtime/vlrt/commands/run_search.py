"""`vlrt run search`: find the photographs a sentence describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlrt.commands.inputs import photographs
from vlrt.commands.options import model_options, output_options
from vlrt.commands.output import Progress, ResultLines
from vlrt.errors import UsageError

if TYPE_CHECKING:
    from vlrt.tasks.search import Found, Searcher


@click.command(short_help="Find the photographs a sentence describes.")
@click.argument("text")
@click.argument("images", nargs=-1, required=True)
@model_options
@click.option("--top", type=click.IntRange(1), default=8, show_default=True, help="How many photographs.")
@click.option("--grid", type=click.Path(path_type=Path), help="Picture of what was found.")
@click.option("--index", type=click.Path(dir_okay=False, path_type=Path), help="File of the embeddings.")
@output_options
def search(
    text: str,
    images: Sequence[str],
    model: str | None,
    device: str,
    threads: int,
    top: int,
    grid: Path | None,
    index: Path | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Find those of IMAGES (files, folders or patterns) that TEXT describes best; embeddings are kept."""
    from vlrt.drawing import check_target
    from vlrt.photo_index import default_store
    from vlrt.tasks import load

    if not text.strip():
        raise UsageError("an empty text describes no photograph", "give at least one word")
    if grid is not None:
        check_target(grid)
    paths = photographs(images)
    searcher: Searcher = load("search", model, device=device, threads=threads)
    folder = Path(images[0]) if len(images) == 1 and Path(images[0]).is_dir() else Path.cwd()
    store = index or default_store(folder, searcher.encoder.bundle)
    known, failures = searcher.index(paths, store, Progress(len(paths), "photographs"))
    with ResultLines(as_json, out, resume=False) as lines:
        found = searcher(text, known, paths, top)
        for hit in found:
            value = {"image": str(hit.path), "text": text, "score": round(hit.score, 6)}
            lines.result(value, f"{hit.score:7.4f}  {hit.path}")
        for failure in failures:
            lines.failure(str(failure.path), failure.error)
        if grid is not None:
            _draw(found, text, grid)


def _draw(found: Sequence[Found], text: str, target: Path) -> None:
    from vlrt.drawing import photo_grid, save
    from vlrt.image import load

    labels = [f"{hit.score:.3f} {hit.path.name}" for hit in found]
    save(photo_grid([load(hit.path) for hit in found], labels, text), target)
    click.echo(f"grid drawn to {target}", err=True)
