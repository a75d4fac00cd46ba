"""`vlrt run answer`: answer a question about photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.inputs import photographs
from vlrt.commands.options import chosen_decoding, decode_options, model_options, output_options
from vlrt.commands.output import Progress, ResultLines
from vlrt.errors import ImageError, UsageError

if TYPE_CHECKING:
    from vlrt.tasks.answer import Answer, Answerer


@click.command(short_help="Answer a question about photographs.")
@click.argument("images", nargs=-1, required=True)
@click.argument("question")
@model_options
@decode_options
@click.option("--answers", help='Choose among these, separated by commas: "one, two, three".')
@output_options
def answer(
    images: Sequence[str],
    question: str,
    model: str | None,
    device: str,
    threads: int,
    answers: str | None,
    as_json: bool,
    out: Path | None,
    **search: Any,
) -> None:
    """Answer QUESTION about each of IMAGES: files, folders or patterns."""
    from vlrt.tasks import load

    paths, options, given = photographs(images), chosen_decoding(search), _split(answers)
    if not question.strip():
        raise UsageError("an empty question has no answer", 'vlrt run answer photo.jpg "what is this?"')
    answerer: Answerer = load("answer", model, device=device, threads=threads)
    answerer.options(**options)
    with ResultLines(as_json, out, resume=False) as lines:
        progress = Progress(len(paths), "photographs")
        progress(0)
        for done, path in enumerate(paths, 1):
            try:
                found = answerer(path, question, given, **options)
            except ImageError as error:
                lines.failure(str(path), error)
            else:
                lines.result(_value(path, question, found), _text(path, found, many=len(paths) > 1))
            progress(done)


def _split(answers: str | None) -> list[str] | None:
    if answers is None:
        return None
    return [answer for answer in (part.strip() for part in answers.split(",")) if answer]


def _value(path: Path, question: str, found: Answer) -> dict[str, Any]:
    value: dict[str, Any] = {"image": str(path), "question": question}
    value |= {"text": found.text, "score": round(found.score, 6)}
    if found.alternatives:
        every = (found, *found.alternatives)
        value["answers"] = [{"text": a.text, "score": round(a.score, 6)} for a in every]
    return value


def _text(path: Path, found: Answer, many: bool) -> str:
    name = f"{path}: " if many else ""
    if not found.alternatives:
        return name + found.text
    ranked = "\n".join(f"{a.score:8.4f}  {a.text}" for a in (found, *found.alternatives))
    return f"{path}:\n{ranked}" if many else ranked
