"""`vlrt run generate`: paint what words say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.options import model_options
from vlrt.commands.paint_options import drawing_options, paint_options, split_options

if TYPE_CHECKING:
    from vlrt.tasks.draw import Drawer
    from vlrt.tasks.generate import Painter


@click.command(short_help="Paint what words say.")
@click.argument("prompt", default="")
@model_options
@click.option("--label", help="Class to paint, by name or number, of models that know classes.")
@paint_options
@drawing_options
def generate(prompt: str, model: str | None, device: str, threads: int, **given: Any) -> None:
    """Paint what PROMPT says; models without words paint a class (--label), or anything.

    --candidates to --greedy are for models that draw a picture code by code, as DALL-E does; --steps, --scheduler,
    --eta and sizes are for those that paint by diffusion.
    """
    from vlrt.commands.painting import run_painting
    from vlrt.tasks import load

    running, options = split_options(given)
    painter: Painter | Drawer = load("generate", model, device=device, threads=threads, keep_loaded=running.keep_loaded)
    described = painter.bundle.manifest
    if not prompt.strip() and (described.image_tokens or (described.diffusion and described.diffusion.prompts)):
        click.echo("no PROMPT is given: the empty one is painted", err=True)
    run_painting(running, "generate", lambda hooks: painter.batch(prompt, **options, **hooks), model)
