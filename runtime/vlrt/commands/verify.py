"""`vlrt verify`: a bundle's files and goldens, on this machine."""

from __future__ import annotations

import json
import sys

import click

from vlrt import record, zoo
from vlrt.bundle import Bundle


@click.command(short_help="Check a bundle's files and compute its goldens again.")
@click.argument("bundle")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda:0, tensorrt:0, openvino:CPU, …")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def verify(bundle: str, device: str, as_json: bool) -> None:
    """Compare every file of BUNDLE with its hash, and what its graphs give with the goldens of the export."""
    from vlrt.engines import EngineOptions
    from vlrt.verify import verify as measure

    opened = Bundle.open(zoo.find(bundle))
    problems = [str(problem.what) for problem in opened.problems()]
    measured = [] if problems else list(measure(opened, EngineOptions(device)))
    passed = not problems and all(m.passed for m in measured)
    if as_json:
        rows = [record.write(m) | {"passed": m.passed} for m in measured]
        click.echo(json.dumps({"bundle": opened.name, "passed": passed, "problems": problems, "measurements": rows}))
    else:
        click.echo(f"{len(opened.manifest.files)} files " + ("differ from the manifest" if problems else "as exported"))
        for problem in problems:
            click.echo(f"  {problem}")
        for m in measured:
            verdict = "ok" if m.passed else "FAILED"
            click.echo(f"  {verdict:6} {m.stage:32} {m.metric}: {m.value:.3g} (limit {m.limit:.3g})")
        click.echo(f"{opened.name}: " + ("verified" if passed else "NOT as exported"))
    if not passed:
        sys.exit(1)
