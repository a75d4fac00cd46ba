"""Reruns every benchmark on this machine: `vlrt bench --vs all` task by task, then the scripts beside this one.

    python benchmarks/run_all.py -o RESULTS [--only NAME …] [--rounds 7] [--threads 2] [--work FOLDER]

Writes RESULTS/results.json and RESULTS/report.html, which needs nothing beside it. Bundles of random weights and true
shapes are exported to the work folder once, and found there the next time; the figures do not depend on the weights.
Give it a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlrt.report_page import page
from vlrt.whole_file import write_whole

HERE = Path(__file__).resolve().parent
_VLRT = (sys.executable, "-c", "from vlrt.cli import main; main()")


@dataclass(frozen=True)
class Bench:
    """One task beside others.

    Args:
        model: of the zoo, exported with random weights; empty: the bundle that comes with the package.
    """

    task: str
    model: str = ""


@dataclass(frozen=True)
class Script:
    """One script beside this one, with its arguments; `model` names the bundle it takes first, where it takes one."""

    file: str
    model: str = ""
    arguments: tuple[str, ...] = ()


BENCHES = {
    "captioner": Bench("caption"),
    "search": Bench("search"),
    "blip": Bench("caption", "blip"),
    "blip-vqa": Bench("answer", "blip-vqa-base"),
    "clip": Bench("embed", "clip-vit-b-32"),
}
SCRIPTS = {
    "a decoder's step": Script("decoder_step.py"),
    "an LSTM's step": Script("lstm_step.py", "flickr8k-captioner"),
    "sampling": Script("sampler_loop.py"),
    "a UNet's step": Script("unet_step.py", arguments=("--latents", "32", "64", "--runs", "3")),
    "a cascade": Script("cascade.py"),
    "codes of a picture": Script("image_tokens.py"),
    "DALL·E mini": Script("dalle_mini.py", "dalle-mini"),
    "first token": Script("first_token.py"),
    "first token of BLIP": Script("first_token.py", "blip"),
    "kernels": Script("kernels.py"),
    "installation": Script("footprint.py"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=[*BENCHES, *SCRIPTS], help="these alone")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "vlrt" / "benchmarks")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    documents: list[dict[str, Any]] = []
    further: dict[str, Any] = {}
    failed = []
    for name in given.only or [*BENCHES, *SCRIPTS]:
        print(f"-- {name}", flush=True)
        try:
            if name in BENCHES:
                documents.append(_bench(BENCHES[name], given))
            else:
                further[name] = _script(SCRIPTS[name], given)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            further[f"{name}: failed"] = {"exit code": error.returncode, "command": " ".join(error.cmd)}
        # After each of them: hours of figures are not lost to the last one.
        _write(documents, further, given.output)
    print(given.output / "report.html")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _write(documents: list[dict[str, Any]], further: dict[str, Any], folder: Path) -> None:
    results = {"bench": documents, "scripts": further}
    write_whole(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    write_whole(folder / "report.html", page(documents, further).encode())


def _bench(bench: Bench, given: argparse.Namespace) -> dict[str, Any]:
    target = given.output / f"{bench.task}-{bench.model or 'default'}.json"
    page_beside = target.with_suffix(".html")
    command = [*_VLRT, "bench", bench.task, "--threads", str(given.threads)]
    command += ["--json", str(target), "--html", str(page_beside)]
    if bench.model:
        command += ["--model", str(_exported(bench.model, given.work))]
    if bench.task in ("caption", "answer", "embed"):
        command += ["--vs", "all", "--rounds", str(given.rounds)]
    _run(command)
    found: dict[str, Any] = json.loads(target.read_text("utf-8"))
    return found


def _script(script: Script, given: argparse.Namespace) -> Any:
    """A script's figures as JSON, or its lines where it only prints."""
    path = HERE / script.file
    command = [sys.executable, str(path), *([_bundle(script.model, given.work)] if script.model else [])]
    command += list(script.arguments)
    text = path.read_text("utf-8")
    if '"--threads"' in text:
        command += ["--threads", str(given.threads)]
    if '"--json"' not in text:
        return _run(command).splitlines()
    target = given.output / f"{'-'.join(filter(None, (path.stem, script.model)))}.json"
    _run([*command, "--json", str(target)])
    return json.loads(target.read_text("utf-8"))


def _bundle(model: str, work: Path) -> str:
    """A shipped bundle's folder, or that of an exported one."""
    from vlrt import zoo

    return str(zoo.resolve(model, "caption").path if zoo.entry(model).shipped else _exported(model, work))


def _exported(model: str, work: Path) -> Path:
    target = work / model
    if not target.is_dir():
        _run([*_VLRT, "export", model, "--random", "-o", str(target)])
    return target


def _run(command: list[str]) -> str:
    """What a command prints; its errors are seen as they come."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
