"""BLEU and CIDEr-D of a captioning bundle, through the runtime.

    python benchmarks/caption_quality.py BUNDLE --data DIR --setting 3:0.7 --setting 20:0.0:classic --json scores.json

DIR holds `captions.jsonl` (one object a line: `image`, `captions`) and the photographs in `images/`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, generate
from vlrt.errors import UsageError, VlrtError
from vlrt.tasks.caption import Captioner
from vlrt_export.metrics import CaptionScores, score_captions

_BATCH = 16


@dataclass(frozen=True)
class Setting:
    """One way to search: beams, length penalty, rule (`hf` with early stopping, or `classic`)."""

    beams: int
    length_penalty: float
    rule: str = "hf"

    @classmethod
    def parse(cls, text: str) -> Setting:
        beams, penalty, rule = [*text.split(":"), "hf"][:3]
        try:
            return cls(int(beams), float(penalty), rule)
        except ValueError:
            raise UsageError(f"`{text}` is not a setting", "write BEAMS:LENGTH_PENALTY[:RULE], e.g. 3:0.7") from None


class Corpus:
    """Photographs with reference captions."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        path = folder / "captions.jsonl"
        if not path.is_file():
            raise UsageError(f"`{path}` does not exist", "give a folder with captions.jsonl and images/")
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()][:limit]
        self.folder = folder / "images"
        self.references: dict[str, list[str]] = {line["image"]: line["captions"] for line in lines}

    def batches(self) -> Iterator[list[str]]:
        names = list(self.references)
        for start in range(0, len(names), _BATCH):
            yield names[start : start + _BATCH]


def encode(captioner: Captioner, corpus: Corpus) -> list[tuple[list[str], dict[str, Any]]]:
    """The image chain's outputs of every batch, computed once for all settings."""
    encoded = []
    for names in corpus.batches():
        pixels = pictures.preprocess([pictures.load(corpus.folder / n) for n in names], captioner.image_spec)
        outputs = captioner.sessions.run_chain(captioner.spec.chain, {captioner.image_spec.input: pixels})
        wanted = {state.source for state in captioner.spec.states}
        encoded.append((names, {name: value for name, value in outputs.items() if name in wanted}))
    return encoded


def caption(
    captioner: Captioner, encoded: Sequence[tuple[list[str], Mapping[str, Any]]], setting: Setting
) -> dict[str, str]:
    """The best caption of each photograph."""
    options = DecodeOptions.from_manifest(
        captioner.spec.defaults,
        num_beams=setting.beams,
        length_penalty=setting.length_penalty,
        rule=setting.rule,
        early_stopping=True,
    )
    found = {}
    for names, outputs in encoded:
        for name, hypotheses in zip(names, generate(captioner.step_model, outputs, options), strict=True):
            tokens = [int(i) for i in hypotheses[0].tokens if i not in captioner.spec.end_ids]
            found[name] = captioner.codec.decode(tokens)
    return found


def evaluate(bundle: Path, corpus: Corpus, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Scores of every setting, as they come."""
    captioner = Captioner(Bundle.open(bundle))
    encoded = encode(captioner, corpus)
    rows = []
    for setting in settings:
        started = time.perf_counter()
        captions = caption(captioner, encoded, setting)
        seconds = time.perf_counter() - started
        scores = score_captions(captions, corpus.references)
        length = float(np.mean([len(text.split()) for text in captions.values()]))
        print(_line(setting, scores), flush=True)
        rows.append(asdict(setting) | asdict(scores) | {"words": length, "decode_seconds": seconds})
    return rows


def _line(setting: Setting, scores: CaptionScores) -> str:
    bleu = " | ".join(f"{value:5.1f}" for value in scores.bleu)
    return f"| {setting.beams:2} | {setting.length_penalty} | {setting.rule:7} | {bleu} | {scores.cider:.3f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with captions.jsonl and images/")
    parser.add_argument("--setting", action="append", help="BEAMS:LENGTH_PENALTY[:RULE]; may be repeated")
    parser.add_argument("--limit", type=int, help="first N photographs only")
    parser.add_argument("--json", type=Path, help="write the scores here")
    given = parser.parse_args()
    try:
        settings = [Setting.parse(text) for text in given.setting or ["1:0.7", "3:0.7", "20:0.7"]]
        corpus = Corpus(given.data, given.limit)
        print(f"{given.bundle.name}: {len(corpus.references)} photographs")
        print("| beams | length penalty | rule | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | CIDEr-D |")
        print("|---|---|---|---|---|---|---|---|")
        rows = evaluate(given.bundle, corpus, settings)
    except VlrtError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if given.json:
        result = {"bundle": given.bundle.name, "photographs": len(corpus.references), "scores": rows}
        given.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
