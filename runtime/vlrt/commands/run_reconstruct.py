"""`vlrt run reconstruct`: photographs, turned into codes and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from PIL import Image

from vlrt.commands.inputs import photographs
from vlrt.commands.options import model_options
from vlrt.commands.output import Progress, ResultLines
from vlrt.commands.picture_size import size_option
from vlrt.errors import ImageError, UsageError

if TYPE_CHECKING:
    from vlrt.tasks.reconstruct import Reconstruction, Reconstructor

_GAP = 8


@click.command(short_help="Turn photographs into codes and back; measure the loss.")
@click.argument("images", nargs=-1, required=True)
@model_options
@size_option
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Picture of the reconstruction.")
@click.option("--beside", is_flag=True, help="Draw the original to the left of it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per input.")
def reconstruct(
    images: Sequence[str],
    model: str | None,
    device: str,
    threads: int,
    size: tuple[int, int] | None,
    out: Path | None,
    beside: bool,
    as_json: bool,
) -> None:
    """Turn IMAGES (files, folders or patterns) into codes and back, and say how far the pixels moved."""
    from vlrt.drawing import check_target, save
    from vlrt.tasks import load

    paths = photographs(images)
    if out is not None:
        check_target(out)
        if len(paths) != 1:
            raise UsageError(f"`--out` draws one photograph, got {len(paths)}", "name a single one")
    reconstructor: Reconstructor = load("reconstruct", model, device=device, threads=threads)
    with ResultLines(as_json, None, resume=False) as lines:
        progress = Progress(len(paths), "photographs")
        progress(0)
        for done, path in enumerate(paths, 1):
            try:
                found = reconstructor(path, size)
            except ImageError as error:
                lines.failure(str(path), error)
            else:
                if out is not None:
                    save(_beside(found) if beside else found.picture, out)
                lines.result(_value(path, found), _text(path, found, many=len(paths) > 1))
            progress(done)


def _value(path: Path, found: Reconstruction) -> dict[str, Any]:
    rows, columns = found.grid.codes.shape
    psnr = round(found.psnr, 3) if found.mse else None
    return {"image": str(path), "mse": round(found.mse, 8), "psnr": psnr, "rows": rows, "columns": columns}


def _text(path: Path, found: Reconstruction, many: bool) -> str:
    rows, columns = found.grid.codes.shape
    measured = f"mean squared error {found.mse:.5f}, {found.psnr:.1f} dB; {rows} rows of {columns} codes"
    return f"{path}: {measured}" if many else measured


def _beside(found: Reconstruction) -> Image.Image:
    width, height = found.original.size
    sheet = Image.new("RGB", (2 * width + _GAP, height), (255, 255, 255))
    sheet.paste(found.original, (0, 0))
    sheet.paste(found.picture, (width + _GAP, 0))
    return sheet
