"""Milliseconds per step of a GPT-2-size decoder (12 x 768, 50,257 words, random weights) beside the memory's limit.

    python benchmarks/decoder_step.py [--threads 2] [--past 20] [--precision fp32|int8|int8-blocks|int4]

The limit is what one step must read, over the read bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch

from vlrt.engines import EngineOptions, Session
from vlrt.engines.prepared import open_file
from vlrt_export.bundle_writer import write_graph
from vlrt_export.graph_weights import GraphWeights
from vlrt_export.kv_graphs import step_graph
from vlrt_export.modules.gpt2 import DecoderSizes, Gpt2
from vlrt_export.reduced_products import to_blocks, to_int8

SIZES = DecoderSizes(50257, 1024, 768, 12, 12, 3072, activation="gelu_new")
ROWS = (1, 3, 5)
REWRITES = {"int8": to_int8, "int8-blocks": to_blocks(8), "int4": to_blocks(4)}


def bandwidth(threads: int) -> float:
    """Bytes per second of reading 1 GiB once, the best of some runs."""
    torch.set_num_threads(threads)
    block = torch.ones(1 << 28)
    best = min(_seconds(block.sum) for _ in range(7))
    return block.numel() * 4 / best


def bound_step(session: Session, rows: int, past: int, positions: int) -> object:
    """A bound step over `rows` rows with `past` filled positions."""
    inputs = {
        "token": np.full((rows, 1), 11, np.int64),
        "position": np.full((rows, 1), past, np.int64),
        "new_length": np.ones(rows, np.int32),
        "last_position": np.full(rows, past, np.int32),
        "total_length": np.array([past + 1], np.int32),
    }
    outputs = {"logits": np.empty((rows, SIZES.vocabulary), np.float32)}
    for spec in session.spec.inputs[5:]:
        inputs[spec.name] = outputs[f"next_{spec.name}"] = np.zeros(
            (rows, SIZES.heads, positions, SIZES.head_width), np.float32
        )
    return session.bind(inputs, outputs)


def bytes_read(path: Path) -> int:
    """Bytes of weights that a step reads: all but the embeddings that are no product's, of which it reads a row."""
    model = onnx.load(path, load_external_data=False)
    by_rows = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    others = {name for node in model.graph.node if node.op_type != "Gather" for name in node.input}
    sizes = {
        t.name: math.prod(t.dims) * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
        for t in model.graph.initializer
    }
    return sum(size for name, size in sizes.items() if name in others or name not in by_rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--past", type=int, default=20)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--precision", choices=["fp32", "int8", "int8-blocks", "int4"], default="fp32")
    given = parser.parse_args()
    module = Gpt2(SIZES).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = write_graph(step_graph(module, None, 1e-4), folder)
        path = folder / spec.file
        if given.precision != "fp32":
            path.parent.joinpath("reduced").mkdir()
            graph = GraphWeights(path, folder / "reduced" / spec.file)
            REWRITES[given.precision](graph, ())
            spec, path = replace(spec, external=graph.save()), folder / "reduced" / spec.file
        read = bytes_read(path)
        session = open_file(spec, path, EngineOptions(threads=given.threads))
        steps = {rows: bound_step(session, rows, given.past, given.past + 12) for rows in ROWS}
        speed = bandwidth(given.threads)
        times: dict[int, list[float]] = {rows: [] for rows in ROWS}
        for _ in range(given.runs):  # alternating, so that a busy moment meets all of them
            for rows, step in steps.items():
                times[rows].append(_seconds(step))
        speed = max(speed, bandwidth(given.threads))
    limit = read / speed * 1e3
    print(f"reads {read / 1e6:.0f} MB a step at {speed / 1e9:.1f} GB/s: limit {limit:.1f} ms")
    for rows, seconds in times.items():
        median = statistics.median(seconds) * 1e3
        best = min(seconds) * 1e3
        print(
            f"rows {rows}: {median:.1f} ms median, {best:.1f} best; {median / limit:.2f} and {best / limit:.2f} x limit"
        )


def _seconds(call: object) -> float:
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
