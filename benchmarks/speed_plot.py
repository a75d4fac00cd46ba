"""How many times as fast as torch eager: one picture of what the scripts beside this one measured.

    python benchmarks/blip_caption.py BLIP --json results/blip.json      # and the other scripts with --json
    python benchmarks/speed_plot.py results/*.json -o speed.png

Takes the files of `blip_caption.py`, `clip_image.py` (its smallest batch) and `unet_step.py`; a name that ends in a
precision labels the bars. Every bar is the ratio of two medians of one run.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlrt.chart import bars
from vlrt.whole_file import write_whole

_MOST = 40
"""Bars that can still be read in one picture."""


def ratios(path: Path) -> Iterator[tuple[str, float]]:
    """Label and ratio of each pair of medians in one script's results.

    Raises:
        ValueError: none of the three scripts wrote this.
    """
    found = json.loads(path.read_text("utf-8"))
    name = path.stem.replace("_", " ")
    if "steps" in found:
        yield from _of_unet(name, found["steps"])
    elif "images" in found:
        row = found["images"][0]
        yield f"{name} image", row["torch_eager"]["median_ms"] / row["vlrt"]["median_ms"]
    elif all({"vlrt", "hf"} <= set(row) for row in found.values()):
        for part, row in found.items():
            yield (
                f"{name} {part.replace(',', '').replace('decoding', 'decode')}",
                row["hf"]["median"] / row["vlrt"]["median"],
            )
    else:
        raise ValueError(f"`{path}` was written by none of the scripts that compare with torch")


def _of_unet(name: str, steps: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    for step in steps:
        medians = {side: statistics.median(seconds) for side, seconds in step["seconds"].items()}
        for side, median in medians.items():
            if side != "torch":
                yield f"{name} {'vlrt' if side == 'cpu' else side}", medians["torch"] / median


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--machine", default="", help="what it was measured on, for the line below the bars")
    given = parser.parse_args()
    values = {label: (ratio, ratio) for path in given.results for label, ratio in ratios(path)}
    if len(values) > _MOST:
        raise ValueError(f"{len(values)} bars are too many for one picture; give fewer files")
    picture = bars("Times as fast as torch eager fp32, the same weights side by side", "x", values, given.machine)
    drawn = io.BytesIO()
    picture.save(drawn, "PNG", optimize=True)
    write_whole(given.output, drawn.getvalue())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
