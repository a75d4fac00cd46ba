"""BLEU and CIDEr-D of a captioning bundle, through the runtime.

    python benchmarks/caption_quality.py BUNDLE --data DIR --setting 3:0.7 --setting 20:0.0:classic --json scores.json

DIR holds `captions.jsonl` (one object a line: `image`, `captions`) and the photographs in `images/`. With
`--reference CHECKPOINT` the same is measured with the checkpoint's fp32 torch modules and a plain search; the exit code
is 1 where the bundle's BLEU-4 or CIDEr-D lies more than one per cent below.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vlrt.bundle import Bundle
from vlrt.errors import UsageError, VlrtError
from vlrt.tasks.caption import Captioner
from vlrt_export.caption_quality import LARGEST_LOSS, Corpus, Setting, caption, encode, loss, reference_scores
from vlrt_export.captioner_layout import load_show_and_tell, load_show_attend_tell, open_captioner_folder
from vlrt_export.metrics import CaptionScores, score_captions


def evaluate(bundle: Bundle, corpus: Corpus, settings: Sequence[Setting]) -> list[tuple[CaptionScores, dict[str, Any]]]:
    """Scores of every setting as they come, and what JSON shall hold of them."""
    captioner = Captioner(bundle)
    encoded = encode(captioner, corpus)
    rows = []
    for setting in settings:
        started = time.perf_counter()
        captions = caption(captioner, encoded, setting)
        seconds = time.perf_counter() - started
        scores = score_captions(captions, corpus.references)
        length = float(np.mean([len(text.split()) for text in captions.values()]))
        print(_line(setting, scores), flush=True)
        rows.append((scores, asdict(setting) | asdict(scores) | {"words": length, "decode_seconds": seconds}))
    return rows


def compare(
    bundle: Bundle, checkpoint: Path, corpus: Corpus, settings: Sequence[Setting], rows: Sequence[tuple[Any, Any]]
) -> float:
    """Prints the torch modules' scores, notes them in the rows, and gives the largest loss."""
    loaders = {"show-attend-tell": load_show_attend_tell, "show-and-tell": load_show_and_tell}
    if bundle.manifest.family not in loaders:
        raise UsageError(f"there is no torch reference for the family `{bundle.manifest.family}`")
    model = loaders[bundle.manifest.family](open_captioner_folder(checkpoint))
    print("torch fp32:")
    worst = 0.0
    for setting, expected, (found, row) in zip(settings, reference_scores(model, corpus, settings), rows, strict=True):
        lost = loss(found, expected)
        print(f"{_line(setting, expected)} loss {100 * lost:.2f} %")
        row["torch"], row["loss"] = asdict(expected), lost
        worst = max(worst, lost)
    return worst


def _line(setting: Setting, scores: CaptionScores) -> str:
    bleu = " | ".join(f"{value:5.1f}" for value in scores.bleu)
    return f"| {setting.beams:2} | {setting.length_penalty} | {setting.rule:7} | {bleu} | {scores.cider:.3f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--setting", action="append", help="BEAMS:LENGTH_PENALTY[:RULE]; may be repeated")
    parser.add_argument("--limit", type=int, help="first N photographs only")
    parser.add_argument("--reference", type=Path, help="checkpoint whose torch modules are measured too")
    parser.add_argument("--json", type=Path, help="write the scores here")
    given = parser.parse_args()
    try:
        bundle, corpus = Bundle.open(given.bundle), Corpus(given.data, given.limit)
        settings = [Setting.parse(text) for text in given.setting or ["1:0.7", "3:0.7"]]
        print(f"{bundle.name}: {len(corpus.references)} photographs")
        print("| beams | length penalty | rule | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | CIDEr-D |")
        print("|---|---|---|---|---|---|---|---|")
        rows = evaluate(bundle, corpus, settings)
        worst = compare(bundle, given.reference, corpus, settings, rows) if given.reference else 0.0
    except VlrtError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if given.json:
        scores = [row for _, row in rows]
        result = {"bundle": bundle.name, "photographs": len(corpus.references), "scores": scores}
        given.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return int(worst > LARGEST_LOSS)


if __name__ == "__main__":
    sys.exit(main())
