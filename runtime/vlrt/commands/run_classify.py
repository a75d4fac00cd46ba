"""`vlrt run classify`: choose among labels, without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.inputs import photographs
from vlrt.commands.options import model_options, output_options
from vlrt.commands.output import Progress, ResultLines
from vlrt.errors import ImageError, UsageError

if TYPE_CHECKING:
    from vlrt.prompt_bank import PromptBank
    from vlrt.prompts import LearnedPrompts
    from vlrt.tasks.classify import Classification, Classifier


@click.command(short_help="Choose among labels, without training.")
@click.argument("images", nargs=-1, required=True)
@model_options
@click.option("--labels", help='Labels, separated by commas: "a dog, a cat, a bicycle".')
@click.option("--labels-file", type=click.Path(path_type=Path), help="Text file with one label a line.")
@click.option(
    "--template",
    "templates",
    multiple=True,
    help='Sentence with {} for the label; several are averaged.  [default: the model\'s own, often "a photo of a {}."]',
)
@click.option("--prompts", type=click.Path(path_type=Path), help="Learned prompts (.npz, .safetensors) for templates.")
@click.option("--top", type=int, default=5, show_default=True, help="Labels to show per photograph.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Photographs per batch.")
@click.option("--no-cache", is_flag=True, help="Encode the labels anew and do not keep them.")
@output_options
def classify(
    images: Sequence[str],
    model: str | None,
    device: str,
    threads: int,
    labels: str | None,
    labels_file: Path | None,
    templates: Sequence[str],
    prompts: Path | None,
    top: int,
    batch_size: int,
    no_cache: bool,
    as_json: bool,
    out: Path | None,
) -> None:
    """Say which of the labels each of IMAGES (files, folders or patterns) shows."""
    from vlrt.tasks import load

    if top < 1:
        raise UsageError(f"`--top` is {top}, expected at least 1", "--top 1 shows the likeliest")
    paths = photographs(images)
    learned = _learned(prompts)
    names = _labels(labels, labels_file, learned)
    classifier: Classifier = load("classify", model, device=device, threads=threads)
    bank = classifier.bank(names, templates or None, learned, cache=not no_cache)
    with ResultLines(as_json, out, resume=False) as lines:
        progress = Progress(len(paths), "photographs")
        progress(0)
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            for path, found in _classified(classifier, batch, bank, top):
                if isinstance(found, ImageError):
                    lines.failure(str(path), found)
                else:
                    lines.result(_value(path, found), _text(path, found, many=len(paths) > 1))
            progress(start + len(batch))


def _learned(file: Path | None) -> LearnedPrompts | None:
    from vlrt.prompts import LearnedPrompts

    return LearnedPrompts.open(file) if file is not None else None


def _labels(given: str | None, file: Path | None, learned: LearnedPrompts | None) -> tuple[str, ...]:
    """The labels given, or those that learned prompts name."""
    from vlrt.prompts import check_labels, read_lines, split_labels

    if given is not None and file is not None:
        raise UsageError("`--labels` and `--labels-file` exclude each other", "give one of them")
    if given is None and file is None and not (learned and learned.labels):
        raise UsageError("there are no labels to choose from", '--labels "a dog, a cat", or --labels-file FILE')
    if given is None and file is None:
        return learned.labels if learned else ()
    return check_labels(read_lines(file) if file is not None else split_labels(given or ""))


def _classified(
    classifier: Classifier, paths: Sequence[Path], bank: PromptBank, top: int
) -> Iterator[tuple[Path, Classification | ImageError]]:
    """Labels of a batch, or of each photograph by itself where one of them cannot be read."""
    try:
        yield from zip(paths, classifier.batch(paths, bank, top))
    except ImageError as error:
        if len(paths) == 1:
            yield paths[0], error
            return
        for path in paths:
            yield from _classified(classifier, [path], bank, top)


def _value(path: Path, found: Classification) -> dict[str, Any]:
    ranked = [
        {"label": c.label, "probability": round(c.probability, 6), "score": round(c.score, 6)} for c in found.choices
    ]
    return {"image": str(path), "label": found.label, "probability": round(found.probability, 6), "labels": ranked}


def _text(path: Path, found: Classification, many: bool) -> str:
    ranked = "\n".join(f"{c.probability:6.1%}  {c.label}" for c in found.choices)
    return f"{path}:\n{ranked}" if many else ranked
