"""Options of the `vlrt run` commands that paint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from vlrt.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_PICTURE = (
    click.option("--seed", type=int, help="Of the noise, as torch.Generator takes it.  [default: drawn, and shown]"),
    click.option("--count", type=int, default=1, show_default=True, help="Pictures, with seeds one after the other."),
    click.option("--height", type=int, help="Pixels.  [default: the model's]"),
    click.option("--width", type=int, help="Pixels.  [default: the model's]"),
)
_SAMPLING = (
    click.option("--steps", metavar="N", help="Of all stages, or by name: prior=25,decoder=50."),
    click.option("--guidance", metavar="G", help="How much the prompt counts, or by stage; up to 1: none."),
    click.option("--scheduler", metavar="RULE", help="ddim, ddpm, pndm, euler, euler-ancestral, heun, dpm++2m, lcm …"),
    click.option("--eta", type=float, help="Noise of ddim's steps, 0 to 1.  [default: 0]"),
    click.option("--guidance-rescale", type=float, help="0 to 1: against burnt colours of strong guidance."),
    click.option("--guidance-interval", metavar="A,B", help="Shares of the steps that are guided: 0.2,0.8."),
    click.option("--gradient-guidance", type=float, help="Strength of CLIP guidance, where the bundle has it."),
    click.option("--negative", help="What the picture is guided away from."),
)
_RUNNING = (
    click.option("--tiled/--whole", "tiled", default=None, help="Autoencoder in tiles.  [default: if large]"),
    click.option("--two-pass/--one-pass", "two_pass", default=None, help="Halve a step's memory.  [default: if short]"),
    click.option("--keep-loaded", is_flag=True, help="Unload no stage before the end."),
    click.option("--preview", type=click.IntRange(1), metavar="N", help="Write OUT.preview.png every N steps."),
    click.option("--progress", is_flag=True, help="Tell of every step, also where nobody watches."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object per picture."),
    click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path),
        help="Picture; a PNG keeps the options.  [default: TASK-SEED.png]",
    ),
)
_DRAWING = (
    click.option("--candidates", type=int, metavar="N", help="Pictures to draw, of which some are kept."),
    click.option("--keep", type=int, metavar="N", help="The best of the candidates, so many."),
    click.option("--rank", metavar="BUNDLE", help="Dual encoder that says which are best.  [default: likelihood]"),
    click.option("--complete", metavar="PHOTO", help="Photograph whose upper rows are kept."),
    click.option("--rows", type=int, help="Rows of codes of that photograph that are kept."),
    click.option("--temperature", type=float, help="Of the draws."),
    click.option("--top-k", type=int, help="Draw among the k likeliest codes."),
    click.option("--top-p", type=float, help="Draw among the likeliest codes of this mass."),
    click.option("--greedy", is_flag=True, default=None, help="Take the likeliest code every time."),
)
_STRENGTH = click.option("--strength", type=float, help="Above 0, to 1: how much is painted anew.")


@dataclass(frozen=True)
class Running:
    """How a command runs and where its pictures go.

    Args:
        preview: steps between two previews; 0 for none.
        progress: whether steps are told where there is no terminal.
    """

    out: Path | None
    as_json: bool
    preview: int
    progress: bool
    keep_loaded: bool


def paint_options(command: F) -> F:
    """Adds everything that painting by diffusion can be told."""
    for option in reversed((*_PICTURE, *_SAMPLING, *_RUNNING)):
        command = option(command)
    return command


def drawing_options(command: F) -> F:
    """Adds what models that draw code by code can be told besides."""
    for option in reversed(_DRAWING):
        command = option(command)
    return command


def strength_option(command: F) -> F:
    """Adds --strength."""
    return _STRENGTH(command)


def split_options(given: Mapping[str, Any]) -> tuple[Running, dict[str, Any]]:
    """What the command itself needs, and what the task is told: only options that were given.

    Raises:
        UsageError: a value that cannot be read.
    """
    rest = dict(given)
    running = Running(
        out=rest.pop("out"),
        as_json=rest.pop("as_json"),
        preview=rest.pop("preview") or 0,
        progress=rest.pop("progress"),
        keep_loaded=rest.pop("keep_loaded"),
    )
    for name, kind in (("steps", int), ("guidance", float), ("scheduler", str)):
        rest[name] = _by_stage(name, rest.get(name), kind)
    interval = rest.get("guidance_interval")
    if interval is not None:
        rest["guidance_interval"] = _interval(interval)
    return running, {name: value for name, value in rest.items() if value is not None}


def _by_stage(name: str, text: str | None, kind: type) -> Any:
    """One value, or values by stage."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return kind(text)
        return {stage.strip(): kind(value) for stage, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        expected = {int: "a whole number", float: "a number", str: "a rule"}[kind]
        what = f"`--{name}` is `{text}`, expected {expected}, or one for each stage"
        raise UsageError(what, f"--{name} 20, or --{name} base=50,upsample=20") from None


def _interval(text: str) -> tuple[float, float]:
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"`--guidance-interval` is `{text}`, expected two shares", "for example 0.2,0.8") from None
    return start, end
