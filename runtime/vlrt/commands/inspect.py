"""`vlrt inspect`: what a bundle holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from vlrt import record, zoo
from vlrt.bundle import Bundle
from vlrt.errors import one_line
from vlrt.manifest import Manifest, TensorSpec


@click.command(short_help="Show what a bundle holds, or how a picture was made.")
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest, or the parameters, as JSON.")
def inspect(bundle: str, as_json: bool) -> None:
    """Show the manifest of BUNDLE (folder or name): graphs, numbers, and the parity certificate.

    Of a PNG that `vlrt run` painted: how it was made, and the command that makes it again.
    """
    if Path(bundle).is_file() or Path(bundle).suffix.lower() == ".png":
        _picture(Path(bundle), as_json)
        return
    opened = Bundle.open(zoo.find(bundle))
    if as_json:
        click.echo(json.dumps(record.write(opened.manifest), ensure_ascii=False))
        return
    _print(opened, opened.manifest)


def _picture(path: Path, as_json: bool) -> None:
    """How a picture was made."""
    from vlrt.commands.repeat import repeat_command
    from vlrt.picture_file import read_parameters

    parameters = read_parameters(path)
    command = repeat_command(parameters)
    if as_json:
        click.echo(json.dumps({**parameters, "command": command}, ensure_ascii=False))
        return
    for name, value in parameters.items():
        click.echo(
            one_line(
                f"{name:12} {', '.join(f'{k} {v}' for k, v in value.items())}"
                if isinstance(value, dict)
                else f"{name:12} {value}"
            )
        )
    click.echo("again with:")
    click.echo(f"  {one_line(command)}")


def _print(opened: Bundle, found: Manifest) -> None:
    click.echo(f"{found.name}: family {found.family}, serves {', '.join(found.tasks)}; {opened.size / 1e6:.1f} MB")
    click.echo(f"source   {found.source.origin} ({found.source.license}) {found.source.revision}")
    if found.source.note:
        click.echo(f"note     {found.source.note}")
    if found.created_by:
        click.echo("made by  " + ", ".join(f"{name} {number}" for name, number in found.created_by.items()))
    for role, graph in found.graphs.items():
        size = sum(found.files[name].bytes for name in (graph.file, *graph.external))
        stored = f", stored {graph.storage}" if graph.storage else ""
        click.echo(f"graph    {role}: {graph.precision}{stored}, {size / 1e6:.1f} MB")
        click.echo(f"           {_shapes(graph.inputs)} -> {_shapes(graph.outputs)}")
    if found.image:
        fit = f"{found.image.resize} to {found.image.size[0]}x{found.image.size[1]}, {found.image.interpolation}"
        click.echo(f"image    {fit}; mean {list(found.image.mean)}, std {list(found.image.std)}")
    if found.text:
        click.echo(f"text     {found.text.vocabulary} tokens, context {found.text.context}")
    if found.decode:
        click.echo(f"decode   {json.dumps(found.decode.defaults)}")
    if found.embed:
        click.echo(f"embed    {found.embed.dimension} dimensions, scale {found.embed.scale:.4g}")
    for stage in found.diffusion.stages if found.diffusion else ():
        shape = "x".join(map(str, stage.shape))
        guided = f", guidance {stage.guidance:g}" if stage.guidance > 1 else ""
        rules = ", ".join(dict.fromkeys((stage.rule, *stage.rules)))
        click.echo(f"stage    {stage.name}: {shape}, {stage.steps} steps{guided}; {rules}")
    click.echo("parity certificate:" if found.certificate else "parity certificate: none")
    for line in found.certificate:
        sign = "<=" if line.better == "lower" else ">="
        click.echo(f"  {line.stage:36} {line.metric}: {line.value:.4g} {sign} {line.limit:.4g}  [{line.reference}]")
    if found.card:
        click.echo(found.card.rstrip())


def _shapes(specs: tuple[TensorSpec, ...]) -> str:
    """Tensors of every layer, `key.0` and so on, are shown once for each shape that there is."""
    shown = (f"{re.sub(r'[.][0-9]+$', '.*', spec.name)} [{', '.join(map(str, spec.shape))}]" for spec in specs)
    return ", ".join(dict.fromkeys(shown))
