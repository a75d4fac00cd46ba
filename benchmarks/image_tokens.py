"""Milliseconds per code of a DALL-E (12 x 768, 128 words, 32 x 32 codes, random weights), far into a picture.

    python benchmarks/image_tokens.py [--threads 2] [--given 896] [--rows 1 16]

Two models of one size take their steps in turn: one with ru-dalle's attentions (rows, columns, squares), whose caches
hold what they see, and one that attends to everything. A step is everything from one call of the model to the next: the
graph, the choice of the codes, and moving cells in and out of compact caches. The limit is what a step must read,
weights and caches, over the read bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from decoder_step import bandwidth

from vlrt.decode import DecodeOptions, StepBuffers, StepModel, generate
from vlrt.engines import EngineOptions
from vlrt.engines.prepared import open_file
from vlrt.manifest import DecodeSpec
from vlrt_export.bundle_writer import write_graph
from vlrt_export.dalle_graphs import PREFIX, patterns, states, step_graph
from vlrt_export.dalle_model import random_dalle
from vlrt_export.modules.dalle import DalleSizes

SPARSE = ["column" if (layer - 1) % 4 == 0 else "recent" for layer in range(11)] + ["around"]
SIZES = {
    "words": 16512, "text": 128, "codebook": 8192, "grid": [32, 32], "width": 768, "heads": 12, "head_width": 64,
    "feed_forward": 3072, "kernel": 11, "biased": True, "sandwich": True, "final_norm": True,
}  # fmt: skip


@dataclass
class Side:
    """One model, its step, and the seconds of its steps."""

    name: str
    model: StepModel
    sizes: DalleSizes
    weights: int
    seconds: list[float] = field(default_factory=list)

    def cache_bytes(self, length: int) -> int:
        """What one row's step reads of its caches when `length` positions are filled."""
        named = {pattern.name: pattern for pattern in self.sizes.patterns}
        seen = [named[name].filled(length) if name else length for name in self.sizes.attention]
        return sum(seen) * 2 * 4 * self.sizes.heads * self.sizes.head_width


class Turns:
    """Lets threads take their steps one after the other, until they leave."""

    def __init__(self, count: int) -> None:
        self._order, self._changed = list(range(count)), threading.Condition()

    def wait(self, place: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._order[0] == place)

    def hand_on(self) -> None:
        with self._changed:
            self._order.append(self._order.pop(0))
            self._changed.notify_all()

    def leave(self, place: int) -> None:
        with self._changed:
            self._order.remove(place)
            self._changed.notify_all()


def side(name: str, attention: list[str], folder: Path, threads: int) -> Side:
    model = random_dalle(SIZES | {"attention": attention}, 0)
    graph = replace(step_graph(model.decoder, 1e-3), role=f"{name}_step")
    spec = write_graph(graph, folder)
    session = open_file(spec, folder / spec.file, EngineOptions(threads=threads))
    sizes = model.sizes
    decode = DecodeSpec(
        chain=("text",), step="step", vocabulary=sizes.codebook, start_ids=(0,) * sizes.positions, end_ids=(), pad_id=0,
        states=states(sizes), max_length=sizes.positions + sizes.cells, patterns=patterns(sizes),
    )  # fmt: skip
    tables = (model.decoder.codes, model.decoder.rows, model.decoder.columns)
    held = sum(p.numel() for p in model.decoder.parameters()) - sum(t.weight.numel() for t in tables if t is not None)
    return Side(name, StepModel(decode, session), sizes, 4 * held)


def draw(one: Side, place: int, turns: Turns, rows: int, given: int, steps: int) -> None:
    """Reads a begun picture, then draws with its steps in turn with the other side's."""
    started, first = 0.0, one.sizes.positions + given

    def watch(buffers: StepBuffers) -> None:
        nonlocal started
        if int(buffers.positions[0, 0]) < first or buffers.width > 1:
            return
        if started:
            one.seconds.append(time.perf_counter() - started)
            turns.hand_on()
        turns.wait(place)
        started = time.perf_counter()

    prompt = [*one.model.spec.start_ids, *(i * 7 % one.sizes.codebook for i in range(given))]
    prefix = np.random.default_rng(0).standard_normal((1, one.sizes.positions, one.sizes.width)).astype(np.float32)
    options = DecodeOptions(do_sample=True, num_return_sequences=rows, max_new_tokens=steps, top_k=256)
    try:
        generate(one.model, {PREFIX: prefix}, options, prompts=[prompt], watch=watch)
    finally:
        turns.leave(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--given", type=int, default=896, help="codes before the first one that is timed")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sides = [
            side("sparse", SPARSE, Path(name), given.threads),
            side("full", ["full"] * len(SPARSE), Path(name), given.threads),
        ]
        for rows in given.rows:
            compare(sides, rows, given)


def compare(sides: list[Side], rows: int, given: argparse.Namespace) -> None:
    speed, turns = bandwidth(given.threads), Turns(len(sides))
    for one in sides:
        one.seconds.clear()
    threads = [
        threading.Thread(target=draw, args=(one, place, turns, rows, given.given, given.steps))
        for place, one in enumerate(sides)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    speed = max(speed, bandwidth(given.threads))
    length = sides[0].sizes.positions + given.given + given.steps // 2
    print(f"{rows} candidates, {length} positions filled, {speed / 1e9:.1f} GB/s")
    for one in sides:
        read = one.weights + rows * one.cache_bytes(length)
        limit = read / speed * 1e3
        milliseconds = sorted(1e3 * seconds for seconds in one.seconds)
        median, low, high = statistics.median(milliseconds), milliseconds[0], milliseconds[-1]
        told = f"weights {one.weights / 1e6:.0f} MB, caches {rows * one.cache_bytes(length) / 1e6:.0f} MB"
        print(f"  {one.name}: {median:.1f} ms a step ({low:.1f}-{high:.1f}), {median / limit:.2f} x limit; {told}")


if __name__ == "__main__":
    main()
