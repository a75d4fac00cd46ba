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

LARGEST_LOSS = 0.01
"""Of the reference's BLEU-4 and CIDEr-D that a bundle may lose."""

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


def reference_of(bundle: Bundle, checkpoint: Path) -> Any:
    """The checkpoint's torch modules, of the bundle's family."""
    from vlrt_export.captioner_layout import load_show_and_tell, load_show_attend_tell, open_captioner_folder

    loaders = {"show-attend-tell": load_show_attend_tell, "show-and-tell": load_show_and_tell}
    if bundle.manifest.family not in loaders:
        raise UsageError(f"there is no torch reference for the family `{bundle.manifest.family}`")
    return loaders[bundle.manifest.family](open_captioner_folder(checkpoint))


def reference_scores(reference: Any, corpus: Corpus, settings: Sequence[Setting]) -> list[CaptionScores]:
    """Scores of the torch modules under the plain search, for every setting."""
    import torch

    from vlrt_export.captioner_checks import reference_captions, reference_pixels
    from vlrt_export.reference_search import SearchOptions

    vocabulary = json.loads(reference.words.tokenizer)["model"]["vocab"]
    word = {index: text for text, index in vocabulary.items()}
    captions: list[dict[str, str]] = [{} for _ in settings]
    for names in corpus.batches():
        batch = np.stack([reference_pixels(pictures.load(corpus.folder / name), reference) for name in names])
        with torch.inference_mode():
            regions = reference.encoder(torch.from_numpy(batch))
        for setting, found in zip(settings, captions, strict=True):
            options = SearchOptions(
                beams=setting.beams,
                max_new_tokens=reference.max_new_tokens,
                length_penalty=setting.length_penalty,
                start_id=reference.words.start_id,
                end_id=reference.words.end_id,
                classic=setting.rule == "classic",
            )
            for name, hypotheses in zip(names, reference_captions(reference, regions, options), strict=True):
                tokens = [i for i in hypotheses[0].tokens if i != reference.words.end_id]
                found[name] = " ".join(word[i] for i in tokens)
    return [score_captions(found, corpus.references) for found in captions]


def losses(rows: Sequence[Mapping[str, Any]], expected: Sequence[CaptionScores]) -> list[float]:
    """By how much of the reference's BLEU-4 or CIDEr-D, whichever fell more, each setting lies below it."""
    return [
        max(1 - row["bleu"][3] / scores.bleu[3], 1 - row["cider"] / scores.cider)
        for row, scores in zip(rows, expected, strict=True)
    ]


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


def compare(
    rows: list[dict[str, Any]], corpus: Corpus, settings: Sequence[Setting], given: argparse.Namespace
) -> float:
    """Prints the reference's scores, notes them in `rows`, and gives the largest loss."""
    expected = reference_scores(reference_of(Bundle.open(given.bundle), given.reference), corpus, settings)
    lost = losses(rows, expected)
    print("torch fp32:")
    for row, setting, scores, loss in zip(rows, settings, expected, lost, strict=True):
        print(f"{_line(setting, scores)} loss {100 * loss:.2f} %")
        row["torch"], row["loss"] = asdict(scores), loss
    return max(lost)


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
        settings = [Setting.parse(text) for text in given.setting or ["1:0.7", "3:0.7", "20:0.7"]]
        corpus = Corpus(given.data, given.limit)
        print(f"{given.bundle.name}: {len(corpus.references)} photographs")
        print("| beams | length penalty | rule | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | CIDEr-D |")
        print("|---|---|---|---|---|---|---|---|")
        rows = evaluate(given.bundle, corpus, settings)
        worst = compare(rows, corpus, settings, given) if given.reference else 0.0
    except VlrtError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if given.json:
        result = {"bundle": given.bundle.name, "photographs": len(corpus.references), "scores": rows}
        given.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return int(worst > LARGEST_LOSS)


if __name__ == "__main__":
    sys.exit(main())
