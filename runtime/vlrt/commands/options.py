"""Options that every `vlrt run` command takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_MODEL_OPTIONS = (
    click.option("--model", metavar="BUNDLE", help="Name or folder of a bundle.  [default: the task's own]"),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda:0, …"),
    click.option("--threads", type=click.IntRange(0), default=0, help="Threads of the CPU; 0 means all."),
)
_OUTPUT_OPTIONS = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per input."),
    click.option(
        "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON lines to FILE."
    ),
)


def model_options(command: F) -> F:
    """Adds --model, --device and --threads."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


def output_options(command: F) -> F:
    """Adds --json and --out."""
    for option in reversed(_OUTPUT_OPTIONS):
        command = option(command)
    return command
