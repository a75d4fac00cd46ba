"""Peak memory of exporting BLIP-2 with a large OPT: resident, anonymous and mapped, over the fp32 weights of its graph.

    python benchmarks/export_memory.py --layers 24 --width 2048 [--precision int8]     # OPT-1.3B

The checkpoint has random weights, and an image encoder and Q-Former too small to count; it is written first by a
process of its own. Everything an export does is in it: reading, tracing, writing, proving, transformers' reference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

KINDS = ("VmRSS", "RssAnon", "RssFile")
VOCABULARY = 50272


def config(layers: int, width: int) -> dict[str, Any]:
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "opt", "vocab_size": VOCABULARY, "hidden_size": width, "word_embed_proj_dim": width}
    text |= {"num_hidden_layers": layers, "num_attention_heads": width // 64, "ffn_dim": 4 * width}
    return {
        "model_type": "blip-2",
        "vision_config": small | {"image_size": 28, "patch_size": 14},
        "qformer_config": small | {"encoder_hidden_size": 32},
        "text_config": text,
        "image_token_index": 50265,
    }


def write_checkpoint(folder: Path, layers: int, width: int) -> None:
    from safetensors.torch import save_file

    from vlrt_export.blip2_checkpoint import random_blip2
    from vlrt_export.text_files import stand_in
    from vlrt_export.weight_layout import invert

    model = random_blip2(config(layers, width), "generation", 0)
    named = {k: v.contiguous() for part, layout in model.layouts.items() for k, v in invert(part, layout).items()}
    save_file(named, str(folder / "model.safetensors"), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(layers, width)), "utf-8")
    stand_in(VOCABULARY, {1: "<pad>", 50265: "<image>", 2: "</s>"}).save(str(folder / "tokenizer.json"))


class Watch(threading.Thread):
    """Highest memory of this process by stage, in GB, every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stage, self.peaks = "reading", dict[str, dict[str, float]]()

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            now = {key: int(line.split()[1]) / 1e6 for line in lines if (key := line.split(":")[0]) in KINDS}
            peak = self.peaks.setdefault(self.stage, now)
            self.peaks[self.stage] = {key: max(peak[key], now[key]) for key in KINDS}
            time.sleep(0.02)


def export(folder: Path, weights: float, precision: str) -> None:
    from vlrt.zoo import Entry, zoo
    from vlrt_export.bundle_writer import write_bundle
    from vlrt_export.request import Request, build

    watch = Watch()
    watch.start()
    started = time.monotonic()
    entry = Entry("blip2", ("caption",), "", tolerances={"graph": 1e-3})

    def enter(stage: str) -> None:
        watch.stage = stage

    wish = None
    if precision != "fp32":
        from vlrt_export.calibration import synthetic
        from vlrt_export.gate import Wish

        few = replace(synthetic(), seen=synthetic().seen[:1], held_out=synthetic().held_out[:1])
        wish = Wish(precision, few, zoo().gate, smaller=1.5)
    write_bundle(build(Request("large", entry, str(folder))), folder / "bundle", progress=enter, wish=wish)
    print(f"{weights:.2f} GB of fp32 weights, exported in {time.monotonic() - started:.0f} s")
    for stage, peak in watch.peaks.items():
        print(f"  {stage:42}" + "  ".join(f"{key} {peak[key]:5.2f}" for key in KINDS))
    highest = max(peak["VmRSS"] for peak in watch.peaks.values())
    print(f"peak resident {highest:.2f} GB, {highest / weights:.2f} times the weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--folder", type=Path, help="Where to put checkpoint and bundle for the time.")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8", "int4"])
    parser.add_argument("--only-write", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.only_write:
        write_checkpoint(chosen.only_write, chosen.layers, chosen.width)
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        # Prepared forms of graphs this large would push everything else out of the user's own cache.
        os.environ["VLRT_CACHE"] = str(Path(scratch) / "cache")
        sizes = ["--layers", str(chosen.layers), "--width", str(chosen.width)]
        subprocess.run([sys.executable, __file__, *sizes, "--only-write", scratch], check=True)
        export(Path(scratch), (Path(scratch) / "model.safetensors").stat().st_size / 1e9, chosen.precision)


if __name__ == "__main__":
    main()
