"""A caption of 20 tokens by BLIP-base with random weights: our bundle beside transformers eager, in one process.

    vlrt export blip-caption-base --random -o BUNDLE
    vlrt export blip-caption-base --source BUNDLE --precision int8 -o REDUCED
    python benchmarks/blip_caption.py BUNDLE|REDUCED [--threads 2] [--runs 7] [--json FILE]

Both run the same weights on the same pixels, turn by turn, so that a busy moment meets both. Shown are the medians and
the best of the wall clock, and the processor time of all threads, which other programs disturb least. The decoding is
measured from the image's states on: our memory graph and loop, transformers' `text_decoder.generate`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch

from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, StepModel, generate
from vlrt.engines import EngineOptions, Sessions
from vlrt_export.blip_checkpoint import CAPTIONING, random_blip
from vlrt_export.blip_reference import transformers_blip

TOKENS = 20


class Ours:
    """The bundle through the runtime's own sessions and loop."""

    def __init__(self, folder: Path, threads: int) -> None:
        bundle = Bundle.open(folder)
        spec = bundle.manifest.decode
        if spec is None:
            raise SystemExit(f"{folder} does not caption")
        self.spec = spec
        self.precisions = {graph.precision for graph in bundle.manifest.graphs.values()}
        self.sessions = Sessions(bundle, EngineOptions(threads=threads))
        self.step = StepModel(spec, self.sessions.get(spec.step))

    def encode(self, pixels: torch.Tensor) -> dict[str, Any]:
        return self.sessions.run_chain(self.spec.chain[:1], {"pixels": pixels.numpy()})

    def decode(self, states: dict[str, Any], beams: int) -> list[int]:
        initial = self.sessions.run_chain(self.spec.chain[1:], states)
        options = DecodeOptions(num_beams=beams, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        return list(generate(self.step, initial, options)[0][0].tokens)

    def caption(self, pixels: torch.Tensor, beams: int) -> list[int]:
        return self.decode(self.encode(pixels), beams)


class Theirs:
    """The same weights in transformers' class, eager, fp32."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.ids = model.config.text_config

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.model.vision_model(pixels)[0]  # type: ignore[no-any-return]

    def decode(self, states: torch.Tensor, beams: int) -> list[int]:
        found = self.model.text_decoder.generate(
            input_ids=torch.full((len(states), 1), self.ids.bos_token_id),
            eos_token_id=self.ids.sep_token_id,
            pad_token_id=self.ids.pad_token_id,
            encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:-1], dtype=torch.long),
            **_length(beams),
        )
        return list(found[0, 1:].tolist())

    def caption(self, pixels: torch.Tensor, beams: int) -> list[int]:
        return list(self.model.generate(pixel_values=pixels, **_length(beams))[0, 1:].tolist())


def _length(beams: int) -> dict[str, Any]:
    return {"num_beams": beams, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}


def alternate(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each call, all of them in turn, after a round that is not counted: median, best, processor."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, call in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            call()
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {name: _summary(found[1:]) for name, found in times.items()}


def _summary(seconds: list[tuple[float, float]]) -> dict[str, float]:
    wall, processor = ([second * 1e3 for second in column] for column in zip(*seconds))
    return {"median": statistics.median(wall), "best": min(wall), "processor": statistics.median(processor)}


def show(rows: dict[str, dict[str, dict[str, float]]]) -> None:
    """A line a row and kind of time."""
    for name, row in rows.items():
        for kind in ("median", "best", "processor"):
            ours, theirs = row["vlrt"][kind], row["hf"][kind]
            print(f"{name:20} {kind:9}  vlrt {ours:7.0f} ms   transformers {theirs:7.0f} ms   {theirs / ours:.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ours, theirs = Ours(given.bundle, given.threads), Theirs(transformers_blip(random_blip({}, CAPTIONING, 0), None))
    pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 384, 384), np.float32))
    states, seen = ours.encode(pixels), theirs.encode(pixels)
    encoding = {"vlrt": lambda: ours.encode(pixels), "hf": lambda: theirs.encode(pixels)}
    rows = {"image encoder": alternate(encoding, given.runs)}
    for beams in (1, 5):
        name = "greedy" if beams == 1 else f"beam {beams}"
        found, expected = ours.caption(pixels, beams), theirs.caption(pixels, beams)
        if found != expected and ours.precisions == {"fp32"}:
            raise SystemExit(f"{name}: the captions differ")
        alike = sum(one == other for one, other in zip(found, expected))
        print(f"{name}: {alike} of {len(expected)} tokens as transformers' in fp32, of random weights")
        decoding = {"vlrt": lambda b=beams: ours.decode(states, b), "hf": lambda b=beams: theirs.decode(seen, b)}
        whole = {"vlrt": lambda b=beams: ours.caption(pixels, b), "hf": lambda b=beams: theirs.caption(pixels, b)}
        rows[f"decoding, {name}"] = alternate(decoding, given.runs)
        rows[f"caption, {name}"] = alternate(whole, given.runs)
    show(rows)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
