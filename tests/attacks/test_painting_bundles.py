"""Bundles that paint, made to harm or to confuse: each is refused with one line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlrt import cli

Change = Callable[[dict[str, Any]], object]


def stage(**values: Any) -> Change:
    return lambda section: section["stages"][0].update(values)


def section(**values: Any) -> Change:
    return lambda found: found.update(values)


LOW = {"source": "text_embedding", "input": "low", "resize": "bilinear"}
CASES: dict[str, tuple[Change, str]] = {
    "a sample beyond memory": (stage(shape=[8192, 8192, 8192]), "absurd shape"),
    "a negative axis": (stage(shape=[4, -8, 8]), "absurd shape"),
    "a sample that the graph does not take": (stage(shape=[5, 8, 8], preview=[]), "the stage `latents` has"),
    "a graph that is not there": (stage(denoiser="other"), "which the bundle lacks"),
    "a tokenizer that is not there": (
        lambda found: found["prompts"][0]["text"].update(tokenizer="../x"),
        "not among the bundle's files",
    ),
    "a rule that is not there": (stage(rule="magic"), "names the rule `magic`"),
    "endless steps": (stage(steps=10**9), "1000000000 steps"),
    "endless training": (lambda found: found["stages"][0]["schedule"].update(train_steps=10**9), "1000000000 training"),
    "a division by zero": (stage(latent_scale=0), "must not be zero"),
    "no stage": (section(stages=[]), "needs stages"),
    "a preview of other channels": (stage(preview=[[1, 0, 0]]), "a preview of 1 channels"),
    "guidance embedded in nothing": (stage(guidance_embedding="w", guidance_width=2), "embeds its guidance in 2"),
    "tiles that do not move": (stage(tile=8, tile_overlap=1.0), "overlapping by 1.0"),
    "tiles that hardly move": (stage(tile=8, tile_overlap=0.95), "overlapping by 0.95"),
    "endless pictures": (section(max_size=10**9), "cannot be meant"),
    "a start that is not there": (section(variation_start="other"), "no stage `other`"),
    "an output that nothing gives": (stage(output="other"), "ends without its output `other`"),
    "a picture of another size": (stage(factor=3), r"gives a picture of shape \[1, 3, 16, 16\]"),
    "no finish": (stage(finish=[]), r"gives a picture of shape \[1, 4, 8, 8\]"),
    "an input that nothing gives": (stage(prepare=[]), "`prompt_shift` of `unet.onnx` comes from nowhere"),
    "an embedding to enlarge": (stage(low_resolution=LOW), "is no picture to enlarge"),
    "a picture before the first": (stage(low_resolution=LOW | {"source": "other"}), "which nothing gives"),
    "a chain in the wrong order": (stage(prepare=["latent_decoder"]), "comes from nowhere"),
    "a number for a list": (section(stages=3), "expected a list"),
    "an unknown key": (stage(run="rm"), "unknown key"),
}


@pytest.mark.parametrize("name", CASES)
def test_sections_that_cannot_be_meant(
    latent_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = Path(shutil.copytree(latent_bundle, tmp_path / "latent"))
    change, words = CASES[name]
    path = folder / "manifest.json"
    value = json.loads(path.read_text("utf-8"))
    change(value["diffusion"])
    path.write_text(json.dumps(value), "utf-8")
    with pytest.raises(SystemExit) as exit_:
        cli.main(["run", "generate", "a dog", "--seed", "1", "--model", str(folder), "-o", str(tmp_path / "a.png")])
    printed = capsys.readouterr()
    assert exit_.value.code == 1, printed
    assert printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) <= 2
    assert re.search(words, printed.err), printed.err
    assert not (tmp_path / "a.png").exists()
