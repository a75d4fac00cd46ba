"""Peak memory of painting, stage by stage: with stages unloaded one after the other, and with all of them kept.

    python benchmarks/diffusion_memory.py BUNDLE --steps 2

Each way runs in a process of its own, which reads its memory every 5 ms. Beside the peak stands the size of the stage's
graphs on disk; what a stage needs beyond them are the engine's copies of weights and its activations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from vlrt.benchmark import machine, versions
from vlrt.bundle import Bundle
from vlrt.diffusion.prompt_cache import PromptCache
from vlrt.engines import EngineOptions
from vlrt.tasks.generate import Painter

WAYS = ("unloaded", "kept")


class Watch(threading.Thread):
    """Largest resident memory by stage, in 10^6 bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stage, self.peaks = "before", dict[str, float]()

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.005)

    def look(self) -> None:
        lines = Path("/proc/self/status").read_text("ascii").splitlines()
        resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6
        self.peaks[self.stage] = max(self.peaks.get(self.stage, 0.0), resident)


def paint(folder: str, way: str, steps: int, threads: int) -> dict[str, Any]:
    """Paints once in this process; peaks by stage."""
    watch = Watch()
    watch.start()
    painter = Painter(Bundle.open(folder), EngineOptions(threads=threads), keep_loaded=way == "kept")
    cascade = painter.cascade
    cascade.prompts.cache = PromptCache(keeps=False)
    names = dict.fromkeys(cascade.prompts.roles, "prompt")
    names |= {role: stage.name for stage in painter.spec.stages for role in stage.roles}
    prepare = cascade.sessions.prepare

    def seen(roles: Any) -> None:
        wanted = list(roles)
        watch.stage = names.get(wanted[0], watch.stage) if wanted else watch.stage
        prepare(wanted)

    cascade.sessions.prepare = seen  # type: ignore[method-assign]
    label = {"label": 0} if painter.spec.label_input else {}
    started = time.perf_counter()
    painter("a dog on the grass" if painter.spec.prompts else "", seed=0, steps=steps, **label)
    seconds = time.perf_counter() - started
    watch.stage = "after"
    watch.look()
    return {"peaks": watch.peaks, "seconds": seconds}


def sizes(folder: str) -> dict[str, float]:
    """Graphs and their external data by stage, in 10^6 bytes."""
    described = Bundle.open(folder).manifest
    spec = described.diffusion
    if spec is None:
        raise SystemExit(f"{folder} does not paint")

    def total(roles: Any) -> float:
        names = {name for role in roles for name in (described.graphs[role].file, *described.graphs[role].external)}
        return sum(described.files[name].bytes for name in names) / 1e6

    stages = {stage.name: total(stage.roles) for stage in spec.stages}
    return {"prompt": total(role for prompt in spec.prompts for role in prompt.chain)} | stages


def child(way: str, given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, given.bundle, "--way", way]
    command += ["--steps", str(given.steps), "--threads", str(given.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(paint(given.bundle, given.way, given.steps, given.threads)))
        return
    found = {way: child(way, given) for way in WAYS}
    disk = sizes(given.bundle)
    print(f"{'stage':16} {'on disk':>9} {'unloaded':>9} {'kept':>9}   peak resident memory, MB")
    for name in ("before", *disk, "after"):
        peaks = "".join(f" {found[way]['peaks'].get(name, 0.0):9.1f}" for way in WAYS)
        print(f"{name:16} {disk.get(name, 0.0):9.1f}{peaks}")
    whole = {way: max(found[way]["peaks"].values()) for way in WAYS}
    print(f"{'peak':16} {sum(disk.values()):9.1f} {whole['unloaded']:9.1f} {whole['kept']:9.1f}")
    base, largest = found["unloaded"]["peaks"]["before"], max(disk.values())
    above = whole["unloaded"] - base
    print(f"unloading: {above:.1f} MB above the start, {above / largest:.2f} x the largest stage on disk")
    if given.json:
        report = {"machine": machine(), "versions": versions(), "disk": disk, **found}
        given.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
