"""BLEU and CIDEr-D of a captioning bundle on photographs with references, and of the torch modules it comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlrt import image as pictures
from vlrt.bundle import Bundle
from vlrt.decode import DecodeOptions, generate
from vlrt.errors import UsageError
from vlrt.manifest import Measurement
from vlrt.tasks.caption import Captioner
from vlrt_export.captioner import Captioner as TorchCaptioner
from vlrt_export.captioner_checks import reference_captions, reference_pixels
from vlrt_export.graph import Check
from vlrt_export.metrics import CaptionScores, score_captions
from vlrt_export.reference_search import SearchOptions

LARGEST_LOSS = 0.01
"""Share of the torch modules' BLEU-4 and CIDEr-D that a bundle may lose."""

_BATCH = 16

Encoded = Sequence[tuple[list[str], Mapping[str, Any]]]


@dataclass(frozen=True)
class Setting:
    """One way to search: beams, length penalty, rule (`hf` with early stopping, or `classic`)."""

    beams: int
    length_penalty: float
    rule: str = "hf"

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Reads ``BEAMS:LENGTH_PENALTY[:RULE]``.

        Raises:
            UsageError: it is something else.
        """
        beams, penalty, rule = [*text.split(":"), "hf"][:3]
        try:
            return cls(int(beams), float(penalty), rule)
        except ValueError:
            raise UsageError(f"`{text}` is not a setting", "write BEAMS:LENGTH_PENALTY[:RULE], e.g. 3:0.7") from None


class Corpus:
    """Photographs with reference captions: `captions.jsonl` (`image`, `captions` a line) and `images/`.

    Raises:
        UsageError: the folder has no such file, or a line of it is something else.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        path = folder / "captions.jsonl"
        if not path.is_file():
            raise UsageError(f"`{path}` does not exist", "give a folder with captions.jsonl and images/")
        self.folder = folder / "images"
        try:
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()][:limit]
            self.references: dict[str, list[str]] = {line["image"]: line["captions"] for line in lines}
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"`{path}` holds other lines than `image` and `captions`") from None

    def batches(self) -> Iterator[list[str]]:
        """Names of photographs, some at a time."""
        names = list(self.references)
        for start in range(0, len(names), _BATCH):
            yield names[start : start + _BATCH]


def encode(captioner: Captioner, corpus: Corpus) -> Encoded:
    """The image chain's outputs of every batch, computed once for all settings."""
    encoded = []
    wanted = {state.source for state in captioner.spec.states}
    for names in corpus.batches():
        pixels = pictures.preprocess([pictures.load(corpus.folder / n) for n in names], captioner.image_spec)
        outputs = captioner.sessions.run_chain(captioner.spec.chain, {captioner.image_spec.input: pixels})
        encoded.append((names, {name: value for name, value in outputs.items() if name in wanted}))
    return encoded


def caption(captioner: Captioner, encoded: Encoded, setting: Setting) -> dict[str, str]:
    """The best caption of each photograph, through the runtime."""
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


def reference_scores(model: TorchCaptioner, corpus: Corpus, settings: Sequence[Setting]) -> list[CaptionScores]:
    """Scores of the fp32 torch modules under the plain search, for every setting."""
    word = {index: text for text, index in json.loads(model.words.tokenizer)["model"]["vocab"].items()}
    captions: list[dict[str, str]] = [{} for _ in settings]
    for names in corpus.batches():
        batch = np.stack([reference_pixels(pictures.load(corpus.folder / name), model) for name in names])
        with torch.inference_mode():
            regions = model.encoder(torch.from_numpy(batch))
        for setting, found in zip(settings, captions, strict=True):
            for name, hypotheses in zip(
                names, reference_captions(model, regions, _search(model, setting)), strict=True
            ):
                found[name] = " ".join(word[i] for i in hypotheses[0].tokens if i != model.words.end_id)
    return [score_captions(found, corpus.references) for found in captions]


def loss(found: CaptionScores, expected: CaptionScores) -> float:
    """By what share of the expected BLEU-4 or CIDEr-D, whichever fell more, the found ones lie below."""
    return max(1 - found.bleu[3] / expected.bleu[3], 1 - found.cider / expected.cider)


def quality_checks(model: TorchCaptioner, data: str | Path | None) -> list[Check]:
    """The rung of task quality where the user gave photographs with captions, else none.

    Raises:
        UsageError: the data cannot be read, or the decoder draws random numbers.
    """
    if data is None:
        return []
    if getattr(model.decoder, "mode", "") == "hard-sampled":
        raise UsageError("`--data` needs a decoder that draws no random numbers", "use `--attention soft` or `hard`")
    Corpus(Path(data))

    def quality(folder: Path) -> Iterator[Measurement]:
        yield from measure_quality(model, folder, Path(data))

    return [quality]


def measure_quality(model: TorchCaptioner, folder: Path, data: Path) -> Iterator[Measurement]:
    """Rung 5 for a captioner: BLEU-4 and CIDEr-D of the staged bundle, not below torch's by more than a hundredth.

    Args:
        model: the torch modules the bundle was traced from.
        folder: the bundle.
        data: folder of a `Corpus`.
    """
    corpus = Corpus(data)
    captioner = Captioner(Bundle.open(folder))
    defaults = captioner.spec.defaults
    setting = Setting(defaults.get("num_beams", 1), defaults.get("length_penalty", 1.0), defaults.get("rule", "hf"))
    found = score_captions(caption(captioner, encode(captioner, corpus), setting), corpus.references)
    expected = reference_scores(model, corpus, [setting])[0]
    note = f"{len(corpus.references)} photographs, {setting.beams} beams, length penalty {setting.length_penalty}"
    reference = ("torch modules in fp32", torch.__version__)
    for metric, ours, theirs in (
        ("BLEU-4", found.bleu[3], expected.bleu[3]),
        ("CIDEr-D", found.cider, expected.cider),
    ):
        limit = theirs * (1 - LARGEST_LOSS)
        yield Measurement("captions", metric, round(ours, 4), round(limit, 4), *reference, note, "higher")


def _search(model: TorchCaptioner, setting: Setting) -> SearchOptions:
    return SearchOptions(
        beams=setting.beams,
        max_new_tokens=model.max_new_tokens,
        length_penalty=setting.length_penalty,
        start_id=model.words.start_id,
        end_id=model.words.end_id,
        classic=setting.rule == "classic",
    )
