"""`vlrt run upscale`: enlarge a photograph by painting its details."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.options import model_options
from vlrt.commands.paint_options import paint_options, split_options

if TYPE_CHECKING:
    from vlrt.tasks.upscale import Upscaler


@click.command(short_help="Enlarge a photograph by painting its details.")
@click.argument("photograph")
@click.argument("prompt", default="")
@model_options
@paint_options
def upscale(photograph: str, prompt: str, model: str | None, device: str, threads: int, **given: Any) -> None:
    """Enlarge PHOTOGRAPH, which PROMPT describes."""
    from vlrt.commands.painting import run_painting
    from vlrt.tasks import load

    running, options = split_options(given)
    upscaler: Upscaler = load("upscale", model, device=device, threads=threads, keep_loaded=running.keep_loaded)
    run_painting(running, "upscale", lambda hooks: upscaler.batch(photograph, prompt, **options, **hooks), model)
