"""`vlrt run inpaint`: paint the masked part of a photograph anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.options import model_options
from vlrt.commands.paint_options import paint_options, split_options, strength_option

if TYPE_CHECKING:
    from vlrt.tasks.inpaint import Inpainter


@click.command(short_help="Paint the masked part of a photograph anew.")
@click.argument("photograph")
@click.argument("mask")
@click.argument("prompt", default="")
@model_options
@strength_option
@paint_options
def inpaint(
    photograph: str, mask: str, prompt: str, model: str | None, device: str, threads: int, **given: Any
) -> None:
    """Paint what is white in MASK, a picture of the size of PHOTOGRAPH, anew as PROMPT says; keep what is black."""
    from vlrt.commands.painting import run_painting
    from vlrt.tasks import load

    running, options = split_options(given)
    inpainter: Inpainter = load("inpaint", model, device=device, threads=threads, keep_loaded=running.keep_loaded)
    run_painting(running, "inpaint", lambda hooks: inpainter.batch(photograph, mask, prompt, **options, **hooks), model)
