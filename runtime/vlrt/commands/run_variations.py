"""`vlrt run variations`: further pictures of what a photograph shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.options import model_options
from vlrt.commands.paint_options import paint_options, split_options

if TYPE_CHECKING:
    from vlrt.tasks.variations import Varier


@click.command(short_help="Paint further pictures of what a photograph shows.")
@click.argument("photograph")
@model_options
@click.option("--prompt", help="What is told to the decoder besides.  [default: nothing]")
@click.option("--from", "source", help="A sentence that the photograph fits …")
@click.option("--to", "target", help="… and one that the pictures are to fit instead.")
@click.option("--theta", type=float, help="How far towards their difference, 0 to 1.  [default: 0.25]")
@paint_options
def variations(photograph: str, model: str | None, device: str, threads: int, **given: Any) -> None:
    """Paint what PHOTOGRAPH shows again; with --from and --to, changed as two sentences differ."""
    from vlrt.commands.painting import run_painting
    from vlrt.tasks import load

    running, options = split_options(given)
    varier: Varier = load("variations", model, device=device, threads=threads, keep_loaded=running.keep_loaded)
    run_painting(running, "variations", lambda hooks: varier.batch(photograph, **options, **hooks), model)
