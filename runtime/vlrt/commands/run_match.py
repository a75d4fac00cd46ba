"""`vlrt run match`: score sentences against a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.options import model_options, output_options
from vlrt.commands.output import ResultLines
from vlrt.errors import ImageError

if TYPE_CHECKING:
    from vlrt.tasks.match import Matcher


@click.command(short_help="Score sentences against a photograph.")
@click.argument("image")
@click.argument("texts", nargs=-1, required=True)
@model_options
@output_options
def match(
    image: str, texts: Sequence[str], model: str | None, device: str, threads: int, as_json: bool, out: Path | None
) -> None:
    """Score each of TEXTS against IMAGE: the cosine, and its share among the texts."""
    from vlrt.tasks import load

    matcher: Matcher = load("match", model, device=device, threads=threads)
    lines = ResultLines(as_json, out, resume=False)
    try:
        found = matcher(image, texts)
    except ImageError as error:
        lines.failure(image, error)
    else:
        scored = [{"text": m.text, "score": round(m.score, 6), "probability": round(m.probability, 6)} for m in found]
        value: dict[str, Any] = {"image": image, "matches": scored}
        share = len(found) > 1
        ranked = sorted(found, key=lambda m: -m.score)
        table = [f"{m.score:7.4f}{f'  {m.probability:6.1%}' if share else ''}  {m.text}" for m in ranked]
        lines.result(value, "\n".join(table))
    lines.finish()
