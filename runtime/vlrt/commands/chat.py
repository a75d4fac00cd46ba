"""`vlrt chat`: ask one photograph question after question."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.options import chosen_decoding, decode_options, model_options
from vlrt.errors import UsageError

if TYPE_CHECKING:
    from vlrt.tasks.answer import Answerer


@click.command(short_help="Ask one photograph question after question.")
@click.argument("image", type=click.Path(path_type=Path))
@model_options
@decode_options
def chat(image: Path, model: str | None, device: str, threads: int, **search: Any) -> None:
    """Answer questions about IMAGE, a line each, until an empty line or the end of the input.

    The photograph is encoded once; a question costs its own words only. Each is answered by itself: the model does not
    remember the ones before.
    """
    from vlrt.tasks import load

    options = chosen_decoding(search)
    answerer: Answerer = load("answer", model, device=device, threads=threads)
    answerer.options(**options)
    seen = answerer.look(image)
    asks_a_person = sys.stdin.isatty()
    while question := _next(asks_a_person):
        try:
            click.echo(answerer.ask(seen, question, **options).text)
        except UsageError as error:
            # A question that is too long must not end the conversation.
            click.echo(f"error: {error}", err=True)


def _next(asks_a_person: bool) -> str:
    """The next question; empty at the end."""
    if asks_a_person:
        click.echo("> ", nl=False, err=True)
    return sys.stdin.readline().strip()
