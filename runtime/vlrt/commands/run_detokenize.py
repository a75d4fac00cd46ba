"""`vlrt run detokenize`: the picture of a grid of codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vlrt.commands.options import model_options
from vlrt.commands.output import to_json

if TYPE_CHECKING:
    from vlrt.tasks.detokenize import Detokenizer


@click.command(short_help="Turn a grid of codes into a picture.")
@click.argument("tokens", type=click.Path(path_type=Path))
@model_options
@click.option(
    "-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Picture: .png or .jpg."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def detokenize(tokens: Path, model: str | None, device: str, threads: int, out: Path, as_json: bool) -> None:
    """Turn the codes in the file TOKENS (.json or .npz, as `vlrt run tokenize` writes them) into a picture."""
    from vlrt.drawing import check_target, save
    from vlrt.tasks import load
    from vlrt.token_grid import read_grid

    check_target(out)
    grid = read_grid(tokens)
    detokenizer: Detokenizer = load("detokenize", model, device=device, threads=threads)
    picture = detokenizer(grid)
    save(picture, out)
    if as_json:
        value = {"tokens": str(tokens), "picture": str(out), "width": picture.width, "height": picture.height}
        click.echo(to_json(value))
    else:
        click.echo(f"{out}: {picture.width}x{picture.height} pixels of {grid.codes.size} codes")
