"""`vlrt run caption`: say what is on photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.inputs import photographs
from vlrt.commands.options import chosen_decoding, decode_options, model_options, output_options
from vlrt.commands.output import Progress, ResultLines
from vlrt.errors import ImageError, UsageError

if TYPE_CHECKING:
    from vlrt.tasks.caption import Caption, Captioner


@click.command(short_help="Say what is on photographs.")
@click.argument("images", nargs=-1, required=True)
@model_options
@decode_options
@click.option("--prompt", default="", help='How captions begin: "a photo of".')
@click.option("--attention", type=click.Path(path_type=Path), help="Picture of where the model looked.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Photographs per batch.")
@output_options
def caption(
    images: Sequence[str],
    model: str | None,
    device: str,
    threads: int,
    prompt: str,
    attention: Path | None,
    batch_size: int,
    as_json: bool,
    out: Path | None,
    **search: Any,
) -> None:
    """Caption IMAGES: files, folders or patterns."""
    from vlrt.tasks import load

    paths = photographs(images)
    if attention is not None:
        _check_drawing(attention, paths)
    options = chosen_decoding(search)
    captioner: Captioner = load("caption", model, device=device, threads=threads)
    captioner.options(**options)
    with ResultLines(as_json, out) as lines:
        left = [path for path in paths if str(path) not in lines.done]
        if len(left) < len(paths):
            click.echo(f"{len(paths) - len(left)} of {len(paths)} photographs are already in {out}", err=True)
        if attention is not None and not left:
            raise UsageError(f"`{paths[0]}` is already in `{out}`, so there is nothing to draw", "leave `--out` out")
        progress = Progress(len(paths), "photographs")
        progress(len(paths) - len(left))
        captions = _all(captioner, left, options | {"prompt": prompt}, batch_size)
        for done, (path, found) in enumerate(captions, len(paths) - len(left) + 1):
            if isinstance(found, ImageError):
                lines.failure(str(path), found)
            else:
                lines.result(_value(path, found), _text(path, found, many=len(paths) > 1))
                if attention is not None:
                    _draw(path, found, attention)
            progress(done)


def _check_drawing(attention: Path, paths: Sequence[Path]) -> None:
    from vlrt.drawing import check_target

    if len(paths) != 1:
        raise UsageError(f"`--attention` draws one photograph, got {len(paths)}", "name a single one")
    check_target(attention)


def _all(
    captioner: Captioner, paths: Sequence[Path], options: dict[str, Any], batch_size: int
) -> Iterator[tuple[Path, Caption | ImageError]]:
    for start in range(0, len(paths), batch_size):
        yield from _captions(captioner, paths[start : start + batch_size], options)


def _captions(
    captioner: Captioner, paths: Sequence[Path], options: dict[str, Any]
) -> Iterator[tuple[Path, Caption | ImageError]]:
    """Captions of a batch, or of each photograph by itself where one of them cannot be read."""
    try:
        yield from zip(paths, captioner.batch(paths, **options))
    except ImageError as error:
        if len(paths) == 1:
            yield paths[0], error
            return
        for path in paths:
            yield from _captions(captioner, [path], options)


def _value(path: Path, found: Caption) -> dict[str, Any]:
    value: dict[str, Any] = {"image": str(path), "text": found.text, "score": round(found.score, 6)}
    if found.alternatives:
        every = (found, *found.alternatives)
        value["captions"] = [{"text": c.text, "score": round(c.score, 6)} for c in every]
    return value


def _text(path: Path, found: Caption, many: bool) -> str:
    name = f"{path}: " if many else ""
    if not found.alternatives:
        return name + found.text
    ranked = "\n".join(f"{c.score:8.4f}  {c.text}" for c in (found, *found.alternatives))
    return f"{path}:\n{ranked}" if many else ranked


def _draw(path: Path, found: Caption, target: Path) -> None:
    from vlrt.drawing import attention_figure, save
    from vlrt.image import load

    if found.attention is None:
        raise UsageError("this model does not attend, so there is nothing to draw", "leave `--attention` out")
    save(attention_figure(load(path), found.words, found.attention, found.text), target)
    click.echo(f"attention drawn to {target}", err=True)
