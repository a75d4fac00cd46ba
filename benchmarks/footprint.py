"""What an installation costs: bytes on disk, import time, and the whole process from command to caption.

    python benchmarks/footprint.py [--json FILE]

Builds and installs the project with its `cpu` extra into a fresh virtual environment as a user does, bytecode compiled,
then measures there. The first process is not counted: it fills the caches that later ones find.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPH = ROOT / "examples" / "photos" / "astronaut.jpg"


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder, links not followed."""
    return sum(os.lstat(Path(top) / name).st_size for top, _, names in os.walk(folder) for name in names)


def users_environment() -> dict[str, str]:
    """This process's environment without what keeps Python from writing or finding bytecode."""
    hindering = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if name not in hindering}


def timed(command: list[str], runs: int) -> list[float]:
    """Seconds of whole processes, after one that is not counted."""
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=users_environment())
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def import_seconds(python: Path, module: str, runs: int) -> float:
    """Median seconds of an import in a fresh interpreter, the interpreter's own start not counted."""
    code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
    command, environment = [str(python), "-c", code], users_environment()
    outputs = [
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        for _ in range(runs + 1)
    ]
    return statistics.median(float(text) for text in outputs[1:])


def measure(folder: Path, runs: int) -> dict[str, Any]:
    """All figures of a fresh environment in `folder`."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = next((folder / "lib").glob("python*")) / "site-packages"
    before = size_of(site)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--compile", f"{ROOT}[cpu]"]
    subprocess.run(pip, check=True, env=users_environment())
    bytecode = sum(size_of(path) for path in site.rglob("__pycache__"))
    installed = size_of(site) - before
    own = size_of(site / "vlrt") + size_of(site / "vlrt_export")
    process = timed([str(folder / "bin" / "vlrt"), "run", "caption", str(PHOTOGRAPH)], runs)
    return {
        "install_mb": round(installed / 1e6, 1),
        "of_which_bytecode_mb": round(bytecode / 1e6, 1),
        "of_which_vlrt_mb": round(own / 1e6, 1),
        "import_vlrt_ms": round(import_seconds(python, "vlrt", runs) * 1000, 1),
        "import_tasks_ms": round(import_seconds(python, "vlrt.tasks.caption", runs) * 1000, 1),
        "caption_process_ms": {
            "median": round(statistics.median(process) * 1000, 1),
            "min": round(min(process) * 1000, 1),
            "max": round(max(process) * 1000, 1),
            "runs": runs,
        },
    }


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "venv", arguments.runs)
    text = json.dumps(found, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
