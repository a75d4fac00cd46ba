"""CLIP side by side: image embeddings of a bundle against transformers' eager `CLIPModel`, in alternating runs.

    vlrt export clip-vit-b-32 --random -o BUNDLE
    vlrt export clip-vit-b-32 --source BUNDLE --precision int8 -o clip-vit-b-32-int8
    python benchmarks/clip_image.py BUNDLE [--openvino FP32_BUNDLE] [--threads N] [--repeats N] [--json FILE]

The reference has the sizes of the bundle's own graph, taken from the zoo by the bundle's name, and random weights: both
sides do the same arithmetic. `--openvino` adds a third: that bundle's image graph on `openvino:CPU`, in bf16 where the
processor has it. Prints medians and tenth percentiles at batch 1, throughput over batch, and what the
learned-prompt inputs of the text graph cost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.embedding import DualEncoder
from vlrt.engines import EngineOptions, Session, Sessions
from vlrt.errors import UsageError, VlrtError
from vlrt_export.clip_checkpoint import random_clip
from vlrt_export.clip_reference import transformers_clip

_PAUSE = 0.05
"""Seconds before each run: the other side's idle threads spin for a while after theirs and would take a core."""

_WARMUP = 3

REDUCED = ("fp16", "int8", "int4", "auto")
"""Endings of the names of reduced bundles."""


def alternate(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each side, the sides taking turns, so that a busy moment of the machine meets them all."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + _WARMUP):
        for name, run in sides.items():
            time.sleep(_PAUSE)
            started = time.perf_counter()
            run()
            if turn >= _WARMUP:
                times[name].append((time.perf_counter() - started) * 1000)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    tenth = float(np.quantile(times, 0.1))
    return {"median_ms": round(statistics.median(times), 2), "p10_ms": round(tenth, 2)}


def measure_images(
    encoder: DualEncoder, reference: Any, batches: Sequence[int], repeats: int, openvino: Session | None
) -> list[dict[str, Any]]:
    """Batch by batch: every side's latency, the ratio to torch and the runtime's throughput."""
    session = encoder.sessions.get(encoder.spec.image[0])
    rows = []
    for batch in batches:
        pixels = np.random.default_rng(batch).standard_normal((batch, 3, *encoder.image_spec.size)).astype(np.float32)
        tensor = torch.from_numpy(pixels)

        def eager(tensor: torch.Tensor = tensor) -> None:
            with torch.no_grad():
                reference.get_image_features(pixel_values=tensor)

        def runtime(pixels: Any = pixels) -> None:
            session.run(**{encoder.image_spec.input: pixels})

        def beside(pixels: Any = pixels) -> None:
            openvino.run(**{encoder.image_spec.input: pixels})  # type: ignore[union-attr]

        others = {} if openvino is None else {"openvino": beside}
        times = alternate({"eager": eager, "vlrt": runtime, **others}, repeats)
        ratio = statistics.median(times["eager"]) / statistics.median(times["vlrt"])
        rows.append(
            {"batch": batch, "torch_eager": summary(times["eager"]), "vlrt": summary(times["vlrt"])}
            | {name: summary(times[name]) for name in others}
            | {"speedup": round(ratio, 2), "images_per_s": round(1000 * batch / statistics.median(times["vlrt"]), 1)}
        )
    return rows


def measure_texts(encoder: DualEncoder, reference: Any, repeats: int) -> list[dict[str, Any]]:
    """Latency of the text tower, without and with learned vectors in half of the places."""
    rows = []
    for count, length in ((1, 8), (32, 8), (1, 77)):
        ids = np.random.default_rng(length).integers(1, 400, (count, length))
        ids[:, -1] = encoder.codec.spec.end_id
        learned = np.zeros((count, 4, encoder.spec.token_width), np.float32)
        index = np.full(ids.shape, -1, np.int64)
        index[:, 1:5] = range(4)

        def eager(ids: Any = ids) -> None:
            with torch.no_grad():
                reference.get_text_features(input_ids=torch.from_numpy(ids))

        def words(ids: Any = ids) -> None:
            encoder.token_ids(ids)

        def prompts(ids: Any = ids, learned: Any = learned, index: Any = index) -> None:
            encoder.token_ids(ids, learned, index)

        times = alternate({"eager": eager, "words": words, "prompts": prompts}, repeats)
        rows.append({"texts": count, "length": length} | {name: summary(values) for name, values in times.items()})
    return rows


def print_table(report: dict[str, Any]) -> None:
    print(f"{report['bundle']}, {report['threads']} threads, {report['processor']}")
    print(f"{'batch':>5} {'torch eager':>14} {'vlrt':>14} {'speed-up':>9} {'images/s':>9}   (median ms, p10 ms)")
    for row in report["images"]:
        sides = [f"{row[side]['median_ms']:7.1f} {row[side]['p10_ms']:6.1f}" for side in ("torch_eager", "vlrt")]
        print(f"{row['batch']:5} {sides[0]:>14} {sides[1]:>14} {row['speedup']:8.2f}x {row['images_per_s']:9.1f}")
        if "openvino" in row:
            print(f"{'':5} openvino:CPU {row['openvino']['median_ms']:7.1f} {row['openvino']['p10_ms']:6.1f}")
    for row in report["texts"]:
        words, prompts, eager = (row[key]["median_ms"] for key in ("words", "prompts", "eager"))
        shape = f"{row['texts']} texts of {row['length']}"
        print(f"{shape:16} torch eager {eager:7.1f} ms, vlrt {words:7.1f} ms, with learned prompts {prompts:7.1f} ms")


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--openvino", type=Path, help="fp32 bundle of the same model")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = EngineOptions(threads=options.threads)
    torch.set_num_threads(engine.thread_count)
    bundle = Bundle.open(options.bundle)
    model, _, ending = bundle.name.rpartition("-")
    entry = zoo.zoo().models.get(model if ending in REDUCED else bundle.name)
    if entry is None or "patch_size" not in entry.options:
        raise UsageError(f"`{bundle.name}` is no vision transformer of the zoo", "export clip-vit-b-32 under that name")
    reference = transformers_clip(random_clip(entry.options, 0), None)
    encoder = DualEncoder(bundle, engine)
    openvino = None
    if options.openvino is not None:
        on_openvino = EngineOptions("openvino:CPU", threads=engine.thread_count)
        openvino = Sessions(Bundle.open(options.openvino), on_openvino).get(encoder.spec.image[0])
    report = {
        "bundle": bundle.name,
        "threads": engine.thread_count,
        "processor": _processor(),
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, onnxruntime)},
        "load_average": os.getloadavg(),
        "images": measure_images(encoder, reference, options.batches, options.repeats, openvino),
        "texts": measure_texts(encoder, reference, options.repeats),
    }
    print_table(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    names = (
        [line for line in path.read_text("utf-8").splitlines() if line.startswith("model name")]
        if path.is_file()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    try:
        main()
    except VlrtError as error:
        sys.exit(f"error: {error}")
