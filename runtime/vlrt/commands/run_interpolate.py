"""`vlrt run interpolate`: pictures on the way from one photograph to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.options import model_options
from vlrt.commands.paint_options import paint_options, split_options
from vlrt.errors import UsageError

if TYPE_CHECKING:
    from vlrt.tasks.interpolate import Interpolator


@click.command(short_help="Paint the way from one photograph to another.")
@click.argument("first")
@click.argument("last")
@model_options
@click.option("--frames", type=int, default=8, show_default=True, help="Pictures, both ends included.")
@click.option("--prompt", help="What is told to the decoder besides.  [default: nothing]")
@paint_options
def interpolate(first: str, last: str, model: str | None, device: str, threads: int, frames: int, **given: Any) -> None:
    """Paint the way from FIRST to LAST; -o way.gif shows it moving, -o way.png as a grid with each picture beside."""
    from vlrt.commands.painting import run_painting
    from vlrt.tasks import load

    running, options = split_options(given)
    if options.pop("count") != 1:
        raise UsageError("`--count` says nothing here", "use `--frames`")
    task: Interpolator = load("interpolate", model, device=device, threads=threads, keep_loaded=running.keep_loaded)
    run_painting(running, "interpolate", lambda hooks: task(first, last, frames=frames, **options, **hooks), model)
