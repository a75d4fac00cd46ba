"""`vlrt bench --vs`: the same task beside other libraries, and the page that shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vlrt.errors import UsageError, VlrtError
from vlrt.whole_file import write_whole

if TYPE_CHECKING:
    from vlrt.benchmark import Report
    from vlrt.benchmark_comparison import VersusOptions
    from vlrt.engines import EngineOptions

F = TypeVar("F", bound=Callable[..., Any])

_TASKS = ("caption", "answer", "embed", "generate")
_OPTIONS = (
    click.option("--vs", metavar="LIST", help="Measure beside transformers, diffusers, optimum, openvino, …, or all."),
    click.option("--source", metavar="CHECKPOINT", help="With --vs: the weights that the bundle was exported from."),
    click.option(
        "--rounds", type=click.IntRange(1), default=7, show_default=True, help="With --vs: runs of each side."
    ),
    click.option("--tokens", type=click.IntRange(1), default=20, show_default=True, help="With --vs: of each text."),
)


def versus_options(command: F) -> F:
    """Adds --vs, --source, --rounds and --tokens."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def chosen_versus(
    task: str, batches: str | None, num_beams: int | None, steps: int | None, given: Mapping[str, Any]
) -> VersusOptions | None:
    """What `--vs` asks for; `None` where it was not given.

    Raises:
        UsageError: an unknown side, or a task that is not compared.
    """
    from vlrt.benchmark_comparison import PEERS, VersusOptions

    if given["vs"] is None:
        return None
    if task not in _TASKS:
        raise UsageError(f"`{task}` is not measured beside others", "one of " + ", ".join(_TASKS))
    names = PEERS if given["vs"] == "all" else [name.strip() for name in given["vs"].split(",")]
    chosen: dict[str, Any] = {"batches": (1,)} if task == "generate" else {}
    if batches:
        chosen["batches"] = tuple(int(size) for size in batches.split(","))
    if num_beams is not None:
        chosen["beams"] = (num_beams,)
    if steps is not None:
        chosen["steps"] = steps
    return VersusOptions(
        tuple(dict.fromkeys(names)), given["source"] or "", rounds=given["rounds"], tokens=given["tokens"], **chosen
    )


def beside_others(
    report: Report,
    model: str | None,
    engine: EngineOptions,
    photograph: bytes | None,
    versus: VersusOptions | None,
    for_page: bool,
) -> Report:
    """A report with what was found beside others, and for a page with a roofline."""
    from dataclasses import replace

    from vlrt import zoo
    from vlrt.benchmark import synthetic_jpeg

    image = synthetic_jpeg() if photograph is None else photograph
    bundle = zoo.resolve(model, report.task)
    if versus is not None:
        from vlrt.benchmark_versus import compare

        found = compare(report.task, bundle, engine, versus, image, say)
        report = replace(report, versus=found.to_json())
    if for_page and engine.device == "cpu" and report.task != "generate":
        from dataclasses import asdict

        from vlrt.roofline import roofline

        say("roofline")
        report = replace(report, roofline=asdict(roofline(report.task, bundle, engine, image)))
    return report


def say(line: str) -> None:
    """What is measured now, for whoever waits."""
    click.echo(f"{line} …", err=True)


def print_versus(versus: Mapping[str, Any] | None) -> None:
    """A line for each side at each point, then what each side takes."""
    if versus is None:
        return
    click.echo(f"beside others, medians of {versus['rounds']} rounds in turn")
    for figure in versus["figures"]:
        point, same = figure["point"], "" if figure["agrees"] else "   (another result)"
        name = f"batch {point['batch']}" + (f", {point['beams']} beams" if point["beams"] > 1 else "")
        spread = f"{figure['low']:.1f} to {figure['high']:.1f}"
        values = f"{figure['median']:9.1f} ms   {figure['ratio']:6.2f} x   {spread}"
        click.echo(f"  {name:18} {figure['side']:18} {values}{same}")
    for name, side in versus["sides"].items():
        first, note = versus["first_ms"][name], side["note"]
        values = f"first result {first:.0f} ms, peak {side['peak_mb']:.0f} MB, libraries {side['install_mb']:.0f} MB"
        click.echo(f"  {name:18} {values}   ({note})")
    for name, why in versus["skipped"].items():
        click.echo(f"  {name:18} skipped: {why}")


def versus_bars(versus: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Median and upper quartile by side and point, for a chart."""
    found = {}
    for figure in versus["figures"]:
        batch, beams = figure["point"]["batch"], figure["point"]["beams"]
        what = f", {beams} beams" if beams > 1 else f", batch {batch}"
        found[figure["side"] + what] = (figure["median"], figure["high"])
    return found


def write_page(documents: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Writes benchmarks as one HTML page.

    Raises:
        VlrtError: it cannot be written.
    """
    from vlrt.report_page import page

    try:
        write_whole(target, page(documents).encode("utf-8"))
    except OSError as error:
        raise VlrtError(f"`{target}` cannot be written: {error.strerror}", "choose another place") from None
