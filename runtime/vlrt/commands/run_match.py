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
    from vlrt.tasks.match import Match, Matcher


@click.command(short_help="Score sentences against a photograph.")
@click.argument("image")
@click.argument("texts", nargs=-1, required=True)
@model_options
@output_options
def match(
    image: str, texts: Sequence[str], model: str | None, device: str, threads: int, as_json: bool, out: Path | None
) -> None:
    """Score each of TEXTS against IMAGE: the cosine, and its share among the texts.

    Models with a matching head give each text's own probability in the share's place, and are ranked by it.
    """
    from vlrt.tasks import load

    matcher: Matcher = load("match", model, device=device, threads=threads)
    with ResultLines(as_json, out, resume=False) as lines:
        try:
            found = matcher(image, texts)
        except ImageError as error:
            lines.failure(image, error)
        else:
            lines.result({"image": image, "matches": [_value(match) for match in found]}, _table(found))


def _value(match: Match) -> dict[str, Any]:
    return {"text": match.text, "score": round(match.score, 6), "probability": round(match.probability, 6)}


def _table(found: Sequence[Match]) -> str:
    share = len(found) > 1 or found[0].judged
    ranked = sorted(found, key=lambda m: -m.probability if m.judged else -m.score)
    return "\n".join(f"{m.score:7.4f}{f'  {m.probability:6.1%}' if share else ''}  {m.text}" for m in ranked)
