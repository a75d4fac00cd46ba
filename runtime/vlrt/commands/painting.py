"""Running a task that paints: progress, previews, and pictures that appear whole or not at all."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.output import to_json
from vlrt.commands.paint_options import Running
from vlrt.picture_file import Painting, check_picture_target, grid, save_animation, save_picture

if TYPE_CHECKING:
    from vlrt.diffusion.request import PaintStep


def run_painting(
    running: Running, task: str, paint: Callable[[Mapping[str, Any]], Sequence[Painting]], model: str | None
) -> None:
    """Paints, and writes what came out.

    Args:
        paint: gets the hooks as keyword arguments.
        model: the bundle as its user named it; kept with the picture, to make it again.
    """
    if running.out is not None:
        check_picture_target(running.out)
    with _told(running) as hooks:
        paintings = list(paint(hooks))
    paintings = [
        Painting(one.picture, {**one.parameters, **({"model": model} if model else {})}, one.timings)
        for one in paintings
    ]
    write(running, task, paintings)


def write(running: Running, task: str, paintings: Sequence[Painting]) -> None:
    """Writes one picture, or a grid of several and each of them beside it; a GIF shows them one after the other."""
    target = running.out or Path(f"{task}-{paintings[0].seed}.png")
    check_picture_target(target)
    if len(paintings) > 1 and target.suffix.lower() == ".gif":
        save_animation([one.picture for one in paintings], target)
        _say(running, target, {**paintings[0].parameters, "pictures": len(paintings)}, paintings[0])
        return
    if len(paintings) > 1:
        shared = {**paintings[0].parameters, "pictures": len(paintings)}
        save_picture(grid([one.picture for one in paintings]), target, shared)
        _say(running, target, shared, paintings[0])
    width = len(str(len(paintings)))
    for number, one in enumerate(paintings, 1):
        path = target if len(paintings) == 1 else target.with_stem(f"{target.stem}-{number:0{width}}")
        one.save(path)
        _say(running, path, one.parameters, one)


def _say(running: Running, path: Path, parameters: Mapping[str, Any], one: Painting) -> None:
    if running.as_json:
        click.echo(to_json({"image": str(path), **parameters}))
    else:
        several = f"{parameters['pictures']} pictures, " if "pictures" in parameters else ""
        score = f", score {parameters['score']}" if "score" in parameters and not several else ""
        click.echo(f"{path}: {several}{one.picture.width}x{one.picture.height}, seed {parameters.get('seed')}{score}")


@contextlib.contextmanager
def _told(running: Running) -> Iterator[dict[str, Any]]:
    """Hooks for progress and previews; an unfinished picture never stays."""
    base = running.out or Path("vlrt.png")
    preview = base.with_name(f"{base.stem}.preview.png")
    progress = StepProgress(running.progress)

    def on_step(step: PaintStep) -> None:
        progress(step)
        if running.preview and step.step % running.preview == 0:
            small = step.preview()
            if small is not None:
                save_picture(small, preview)
            elif progress.first_of_its_kind(step.stage):
                click.echo(f"warning: the stage `{step.stage}` has no preview", err=True)

    try:
        yield {"on_step": on_step}
    finally:
        progress.end()
        if running.preview:
            preview.unlink(missing_ok=True)


class StepProgress:
    """Steps on standard error: one moving line on a terminal, a line a step where it was asked for, else nothing."""

    def __init__(self, always: bool) -> None:
        self._live = sys.stderr.isatty()
        self._shown = self._live or always
        self._started: dict[tuple[str, int], float] = {}
        self._open = False
        self._warned: set[str] = set()

    def __call__(self, step: PaintStep) -> None:
        """Told of every step."""
        if not self._shown:
            return
        now = time.monotonic()
        started = self._started.setdefault((step.stage, step.picture), now)
        seconds = (now - started) / (step.step - 1) if step.step > 1 else 0.0
        left = round(seconds * (step.steps - step.step))
        pace = f", {seconds:.2f} s a step, {left // 60}:{left % 60:02} left" if seconds else ""
        which = f"picture {step.picture + 1}/{step.pictures}, " if step.pictures > 1 else ""
        line = f"{which}{step.stage}: step {step.step}/{step.steps}{pace}"
        click.echo(f"{line:<60}\r" if self._live else line, err=True, nl=not self._live)
        self._open = self._live

    def first_of_its_kind(self, stage: str) -> bool:
        """Whether a stage is asked about for the first time."""
        fresh = stage not in self._warned
        self._warned.add(stage)
        return fresh

    def end(self) -> None:
        """Leaves the moving line."""
        if self._open:
            click.echo("", err=True)
