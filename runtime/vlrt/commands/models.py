"""`vlrt models`: what we know by name, and which of it is here."""

from __future__ import annotations

import json
from typing import Any

import click

from vlrt import zoo


@click.command(short_help="List the models we know and which are here.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def models(as_json: bool) -> None:
    """List the models of the zoo: name, tasks, and whether the bundle is here or how to get it."""
    known = zoo.zoo()
    rows: list[dict[str, Any]] = []
    for name, entry in known.models.items():
        rows.append(
            {
                "name": name,
                "family": entry.family,
                "tasks": list(entry.tasks),
                "summary": entry.summary,
                "source": entry.source,
                "license": entry.license,
                "here": zoo.locate(name) is not None,
                "default_for": [task for task, model in known.defaults.items() if model == name],
            }
        )
    for name in zoo.exported():
        if name not in known.models:
            rows.append({"name": name, "here": True, "summary": f"your bundle in {zoo.home() / name}", "tasks": []})
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max(len(str(row["name"])) for row in rows)
    for row in rows:
        state = "ready" if row["here"] else f"vlrt export {row['name']}"
        click.echo(f"{row['name']!s:<{width}}  {row['summary']}")
        click.echo(f"{'':<{width}}  {', '.join(row['tasks']) or '-'} · {state}")
