"""`vlrt run tokenize`: photographs as grids of codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from vlrt.commands.inputs import photographs
from vlrt.commands.options import model_options
from vlrt.commands.output import Progress, ResultLines
from vlrt.commands.picture_size import size_option
from vlrt.errors import ImageError, UsageError
from vlrt.token_grid import SUFFIXES, TokenGrid, check_suffix, write_grid

if TYPE_CHECKING:
    from vlrt.tasks.tokenize import Tokenizer


@click.command(short_help="Turn photographs into grids of codes.")
@click.argument("images", nargs=-1, required=True)
@model_options
@size_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per input.")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the codes: .json or .npz for one photograph, else JSON lines.",
)
def tokenize(
    images: Sequence[str],
    model: str | None,
    device: str,
    threads: int,
    size: tuple[int, int] | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Turn IMAGES (files, folders or patterns) into codes, one for every patch of a few pixels."""
    from vlrt.tasks import load

    paths = photographs(images)
    alone = out if out is not None and out.suffix in SUFFIXES else None
    if alone is not None:
        check_suffix(alone)
        if len(paths) != 1:
            what = f"`{alone.name}` holds the codes of one photograph, got {len(paths)}"
            raise UsageError(what, "use an ending of JSON lines, --out codes.jsonl")
    tokenizer: Tokenizer = load("tokenize", model, device=device, threads=threads)
    with ResultLines(as_json, None if alone else out, resume=False) as lines:
        progress = Progress(len(paths), "photographs")
        progress(0)
        for done, path in enumerate(paths, 1):
            try:
                grid = tokenizer(path, size)
            except ImageError as error:
                lines.failure(str(path), error)
            else:
                if alone is not None:
                    write_grid(alone, grid)
                lines.result({"image": str(path)} | grid.to_value(), _text(path, grid, alone, len(paths) > 1))
            progress(done)


def _text(path: Path, grid: TokenGrid, out: Path | None, many: bool) -> str:
    """The rows of codes; once they are in a file, a line about them."""
    rows, columns = grid.codes.shape
    if out is not None:
        used = len(np.unique(grid.codes))
        return f"{path}: {rows} rows of {columns} codes, {used} different of {grid.codebook}, written to {out}"
    width = len(str(grid.codebook - 1))
    lines = "\n".join(" ".join(f"{code:{width}}" for code in row) for row in grid.codes)
    return f"{path}:\n{lines}" if many else lines
