"""`vlrt run edit`: paint over a photograph as words say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.options import model_options
from vlrt.commands.paint_options import paint_options, split_options, strength_option

if TYPE_CHECKING:
    from vlrt.tasks.edit import Editor


@click.command(short_help="Paint over a photograph as words say.")
@click.argument("photograph")
@click.argument("prompt", default="")
@model_options
@strength_option
@paint_options
def edit(photograph: str, prompt: str, model: str | None, device: str, threads: int, **given: Any) -> None:
    """Paint over PHOTOGRAPH as PROMPT says; --strength says how much of it is painted anew."""
    from vlrt.commands.painting import run_painting
    from vlrt.tasks import load

    running, options = split_options(given)
    editor: Editor = load("edit", model, device=device, threads=threads, keep_loaded=running.keep_loaded)
    run_painting(running, "edit", lambda hooks: editor.batch(photograph, prompt, **options, **hooks), model)
