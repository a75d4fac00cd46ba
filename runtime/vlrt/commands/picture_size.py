"""The size of a picture on the command line."""

from __future__ import annotations

import re

import click


def picture_size(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """``256`` or ``WIDTHxHEIGHT`` as height and width in pixels.

    Raises:
        click.BadParameter: neither.
    """
    if value is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,4})(?:[xX×]([1-9]\d{0,4}))?", value.strip())
    if not found:
        raise click.BadParameter(f"`{value}` is no size: 256, or 384x256 (width and height)", context, parameter)
    width = int(found[1])
    return (int(found[2]) if found[2] else width), width


size_option = click.option(
    "--size",
    metavar="PIXELS",
    callback=picture_size,
    help="Size to scale and cut to: 256, or 384x256 (width and height).  [default: the model's]",
)
