"""From the start of the process to the first token of a caption, graphs prepared by an earlier process.

    python benchmarks/first_token.py [BUNDLE] [--photograph FILE] [--runs N] [--json FILE]

The first processes are not counted: they prepare the graphs for this machine, write bytecode, and remember digests of
files (which is not done while the files are younger than two seconds). `--verify-all` forgets the digests before every
process, which is what a start after a change of the files takes. The default bundle is the shipped captioner.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vlrt.folders import cache_folder

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPH = ROOT / "examples" / "photos" / "raccoon.jpg"
_WARM = 3

CHILD = """
import sys, time
from vlrt import load

def told(photograph, token):
    if not times:
        times.append(time.time())

times, (model, photograph, started) = [], sys.argv[1:]
captioner = load("caption", model or None)
loaded = time.time()
found = captioner.batch([photograph], on_token=told, num_beams=1)[0]
ended, started = time.time(), float(started)
print(*(moment - started for moment in (loaded, times[0], ended)), sep="\\n")
"""


def environment(bytecode: Path) -> dict[str, str]:
    """A user's: bytecode is written and found, and nothing is kept from this machine's settings of Python."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**found, "PYTHONPYCACHEPREFIX": str(bytecode), "OPENBLAS_NUM_THREADS": "1"}


def seconds(model: str, photograph: Path, given: dict[str, str]) -> list[float]:
    """Seconds from the process's start until it has a captioner, its first token, and its whole caption."""
    command = [sys.executable, "-c", CHILD, model, str(photograph), repr(time.time())]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=given)
    return [float(line) for line in done.stdout.split()]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians and ranges of all processes but the first ones."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        given = environment(Path(folder))
        for run in range(arguments.runs + _WARM):
            if arguments.verify_all:
                shutil.rmtree(cache_folder() / "digests", ignore_errors=True)
            row = seconds(arguments.bundle, arguments.photograph, given)
            if run == 0:
                time.sleep(2.5)  # for the digests of the graphs that it has prepared
            if run >= _WARM:
                rows.append(row)
    named = zip(("captioner", "first_token", "caption"), zip(*rows))
    return {
        f"{name}_s": {"median": round(statistics.median(v), 3), "min": round(min(v), 3), "max": round(max(v), 3)}
        for name, v in named
    }


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="")
    parser.add_argument("--photograph", type=Path, default=PHOTOGRAPH)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--verify-all", action="store_true", help="hash every file anew in each process")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    text = json.dumps({"bundle": arguments.bundle or "the shipped captioner", **measure(arguments)}, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
