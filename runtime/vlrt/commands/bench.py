"""`vlrt bench`: measure a task on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vlrt.commands.bench_versus import (
    beside_others,
    chosen_versus,
    print_versus,
    say,
    versus_bars,
    versus_options,
    write_page,
)
from vlrt.commands.options import model_options
from vlrt.errors import ImageError, UsageError, VlrtError
from vlrt.whole_file import write_whole

if TYPE_CHECKING:
    from PIL import Image

    from vlrt.benchmark import Report


@click.command(short_help="Measure a task: latency, throughput, memory.")
@click.argument("task", type=click.Choice(["caption", "answer", "match", "search", "classify", "embed", "generate"]))
@model_options
@click.option("--image", type=click.Path(path_type=Path), help="Photograph to measure on.  [default: a synthetic one]")
@click.option("--beams", "num_beams", type=int, help="Beams of the search, for captions and answers.")
@click.option("--steps", type=int, help="Steps of every stage, for pictures.")
@click.option("--repeats", type=click.IntRange(1), help="Measured runs of each point.  [default: 20; of pictures 3]")
@click.option("--warmup", type=click.IntRange(0), help="Runs before, not counted.  [default: 3; of pictures 1]")
@click.option("--batches", help="Batch sizes of the throughput.  [default: 1,2,4,8; of pictures none]")
@click.option("--processes", type=click.IntRange(0), default=3, show_default=True, help="Whole processes; 0 for none.")
@click.option("--json", "target", is_flag=False, flag_value="-", help="Write the report as JSON to FILE, or print it.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the report as a picture.")
@click.option("--profile", type=click.Path(file_okay=False, path_type=Path), help="Folder for the engine's profiles.")
@versus_options
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as one page, with a roofline.")
def bench(
    task: str,
    model: str | None,
    device: str,
    threads: int,
    image: Path | None,
    num_beams: int | None,
    steps: int | None,
    repeats: int | None,
    warmup: int | None,
    batches: str | None,
    target: str | None,
    plot: Path | None,
    profile: Path | None,
    processes: int,
    html: Path | None,
    **beside: Any,
) -> None:
    """Measure TASK: load, first result, stages, steps, throughput over batch, peak memory; with --vs, beside others."""
    from vlrt.benchmark import DECODING, BenchOptions, bench
    from vlrt.engines import EngineOptions

    if num_beams is not None and task not in DECODING:
        raise UsageError("`--beams` is for captions and answers only")
    paints = task == "generate"
    if steps is not None and not paints:
        raise UsageError("`--steps` is for pictures only")
    decode = {} if num_beams is None else {"num_beams": num_beams}
    decode |= {} if steps is None else {"steps": steps}
    options = BenchOptions(
        repeats=repeats or (3 if paints else 20),
        warmup=(1 if paints else 3) if warmup is None else warmup,
        batches=_sizes(batches if batches is not None else "" if paints else "1,2,4,8"),
        processes=processes,
        decode=decode,
    )
    photograph = _read(image) if image else None
    versus = chosen_versus(task, batches, num_beams, steps, beside)
    _check_targets(target, plot, html)
    if profile is not None:
        _make_folder(profile)
    report = bench(task, model, EngineOptions(device, threads, profile), options, photograph, say)
    report = beside_others(report, model, EngineOptions(device, threads), photograph, versus, html is not None)
    if target != "-":
        _print(report)
        print_versus(report.versus)
    if html is not None:
        write_page([report.to_json()], html)
    if target is not None:
        _write_json(report.to_json(), target)
    if plot is not None:
        from vlrt.drawing import save

        save(_draw(report), plot)


def _check_targets(target: str | None, plot: Path | None, html: Path | None) -> None:
    """Finds out before minutes of measuring where the report could not be written after them."""
    if plot is not None:
        from vlrt.drawing import check_target

        check_target(plot)
    for file in (target if target != "-" else None, html):
        if file is not None and not Path(file).parent.is_dir():
            raise UsageError(f"the folder of `{file}` does not exist", "make it first")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VlrtError(f"`{folder}` cannot be made: {error.strerror}", "choose another with --profile") from None


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise UsageError(f"`--batches` is `{text}`, expected whole numbers", "for example 1,4,16") from None


def _read(image: Path) -> bytes:
    try:
        return image.read_bytes()
    except OSError as error:
        raise ImageError(f"`{image}` cannot be read: {error.strerror}", "check the name") from None


def _write_json(value: dict[str, Any], target: str) -> None:
    text = json.dumps(value, indent=1) + "\n"
    if target == "-":
        click.echo(text, nl=False)
        return
    try:
        write_whole(Path(target), text.encode("utf-8"))
    except OSError as error:
        raise VlrtError(f"`{target}` cannot be written: {error.strerror}", "choose another place") from None


def _print(report: Report) -> None:
    machine = f"{report.machine['processor']}, {report.threads} threads, {report.device}"
    click.echo(f"{report.task} with {report.bundle} on {machine}")
    click.echo(f"  result            {report.result}")
    if report.kernels:
        click.echo(f"  kernels           {report.kernels}")
    if report.process_ms:
        click.echo(f"  whole process     {report.process_ms.p50:9.1f} ms")
    click.echo(f"  load              {report.load_ms:9.1f} ms")
    click.echo(f"  first result      {report.first_ms:9.1f} ms after loading")
    for name, latency in report.stages.items():
        click.echo(f"  {name:17} {latency.p50:9.2f} ms   p95 {latency.p95:.2f}")
    if report.step:
        click.echo(f"  decoder step      {report.step.p50:9.3f} ms   p95 {report.step.p95:.3f}   ({report.step.count})")
    for name, latency in report.stage_steps.items():
        rate = 1000 / latency.p50
        click.echo(f"  a step of {name:7} {latency.p50:9.3f} ms   p95 {latency.p95:.3f}   ({rate:.2f} steps/s)")
    for batch, rate in report.throughput.items():
        click.echo(f"  batch {batch:<11} {rate:9.1f} {'pictures' if report.task == 'generate' else 'photographs'}/s")
    click.echo(f"  peak memory       {report.peak_mb:9.1f} MB")


def _draw(report: Report) -> Image.Image:
    from vlrt.chart import bars, stacked

    times = {name: (latency.p50, latency.p95) for name, latency in report.stages.items()}
    times = {"load": (report.load_ms,) * 2, "first result": (report.first_ms,) * 2} | times
    if report.process_ms:
        times = {"whole process": (report.process_ms.p50, report.process_ms.p95)} | times
    rates = {f"batch {batch}": (rate, rate) for batch, rate in report.throughput.items()}
    packages = f"vlrt {report.versions['vlrt']}, onnxruntime {report.versions.get('onnxruntime', '-')}"
    note = f"{report.machine['processor']}, {report.threads} threads, {report.device}; {packages}"
    rows = [bars(f"{report.task}: {report.bundle}", "ms", times, "" if rates else note)]
    if report.versus is not None:
        rows.insert(0, bars("beside others", "ms", versus_bars(report.versus), larger_name="p75"))
    return stacked([*rows, bars("throughput", "photographs/s", rates, note)] if rates else rows)
