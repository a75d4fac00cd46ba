"""`vlrt export --precision`: what it needs, what it refuses, and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt_export import gate
from vlrt_export.gate_speed import Speed

Run = Callable[..., Any]


@pytest.fixture
def fp32(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HIDDEN", "ANNOTATION", "EMBEDDING", "DIMENSION"):
        monkeypatch.setattr(tiny, name, 64)
    tiny.write_bundle(tmp_path / "fp32")
    return tmp_path / "fp32"


@pytest.fixture
def pictures(tmp_path: Path, photograph: Callable[..., Image.Image]) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(9):
        photograph(seed=seed).save(folder / f"{seed}.png")
    (folder / "3.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def export(command: Run, fp32: Path, tmp_path: Path) -> Run:
    return lambda *more: command("export", "clip", "--source", fp32, "-o", tmp_path / "out" / "reduced", *more)


def test_a_bundle_is_reduced_without_its_checkpoint(
    export: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "measure_speed", lambda fp32, reduced, calls: [Speed(2, 1, 0, 15)] * len(reduced))
    # Random weights as wide as the tiny bundle's amplify every rounding.
    few = {"token_agreement": 0.2, "retrieval_agreement": 0.3, "cosine": 0.9}
    known = replace(zoo.zoo(), gate=zoo.zoo().gate | few)
    monkeypatch.setattr(zoo, "zoo", lambda: known)
    found = export("--precision", "int8", "--calibration", pictures, "--json")
    assert found.code == 0, found.err
    assert "`3.png` cannot be read and is left out" in found.err
    assert "comparing with fp32" in found.err
    stages = {line["stage"] for line in json.loads(found.out)["certificate"]}
    assert "gate, caption_step" in stages
    assert Bundle.open(tmp_path / "out" / "reduced").manifest.graphs["caption_step"].precision == "int8"


def test_a_real_model_is_judged_by_photographs(export: Run) -> None:
    export("--precision", "int8").failed(2, "is judged by photographs, and none were given", "--calibration DIR")


def test_too_few_photographs(export: Run, pictures: Path) -> None:
    (pictures / "4.png").unlink()
    export("--precision", "int8", "--calibration", pictures).failed(2, "holds 7 photographs, 1 broken ones not counted")


def test_a_folder_without_photographs(export: Run, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    export("--precision", "auto", "--calibration", tmp_path / "none").failed(
        2, "holds 0 photographs, expected at least 8"
    )
    export("--precision", "auto", "--calibration", tmp_path / "no").failed(2, "is not a folder")


@pytest.mark.parametrize("option", [("--smaller", "2"), ("--calibration", "photos")])
def test_options_of_reduced_precision_need_one(export: Run, option: tuple[str, str]) -> None:
    export(*option).failed(2, "go with a reduced precision", "--precision int8")


def test_other_exports_stay_in_fp32(export: Run) -> None:
    export("--precision", "int8", "--via", "optimum").failed(2, "`--precision int8` does not go with `--via`")


def test_an_unknown_precision_lists_the_known(export: Run) -> None:
    found = export("--precision", "int3")
    assert found.code == 2
    assert all(name in found.err for name in ("fp16", "int8", "int4", "auto"))


def test_a_precision_that_serves_nothing_here(command: Run, tiny: ModuleType, pictures: Path, tmp_path: Path) -> None:
    tiny.write_bundle(tmp_path / "small")
    found = command(
        *("export", "clip", "--source", tmp_path / "small", "-o", tmp_path / "out" / "reduced"),
        *("--precision", "int4", "--calibration", pictures),
    )
    assert found.code == 1
    assert "error: `reduced` has nothing that `int4` could reduce\nhint: choose another --precision" in found.err
    assert not list((tmp_path / "out").iterdir()), "nothing half-made stays"
