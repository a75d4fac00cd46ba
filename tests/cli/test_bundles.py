"""`vlrt models`, `info`, `inspect` and `verify`, for people and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vlrt
from vlrt import manifest, zoo
from vlrt.bundle import Bundle
from vlrt.commands import info as info_command
from vlrt.commands import inspect as inspect_command
from vlrt.sections import TensorSpec

Run = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLRT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# --- models


def test_models(command: Run, home: Path, tiny_bundle_folder: Path) -> None:
    shutil.copytree(tiny_bundle_folder, home / "mine")
    shutil.copytree(tiny_bundle_folder, home / "clip-vit-b-32")
    rows = {row["name"]: row for row in json.loads(command("models", "--json").out)}
    assert set(rows) == {*zoo.zoo().models, "mine"}
    assert rows["clip-vit-b-32"]["here"] is True
    assert rows["clip-vit-b-16"]["here"] is False
    assert "caption" in rows["flickr8k-captioner"]["default_for"]
    assert str(home / "mine") in rows["mine"]["summary"]
    printed = command("models").out
    assert "vlrt export clip-vit-b-16" in printed
    assert "vlrt export clip-vit-b-32" not in printed
    assert all(name in printed for name in rows)


# --- info


def test_info(command: Run) -> None:
    found = json.loads(command("info", "--json").out)
    assert found["vlrt"] == vlrt.__version__
    assert "cpu" in found["devices"]
    assert found["processors"] >= 1
    assert "numpy" in found["packages"]
    printed = command("info")
    assert printed.code == 0
    assert printed.out.startswith(f"vlrt {vlrt.__version__}, Python ")


def test_info_names_a_clash_and_how_to_mend_it(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info_command, "_version", lambda package: "1.0")
    found = command("info")
    assert found.code == 1
    assert "error: onnxruntime and onnxruntime-gpu are both installed and clash" in found.err
    assert "hint: pip uninstall onnxruntime onnxruntime-gpu" in found.err


# --- inspect


def test_inspect(command: Run, tiny_bundle_folder: Path) -> None:
    printed = command("inspect", tiny_bundle_folder)
    assert printed.code == 0
    for words in (
        "tiny: family tiny, serves caption, match, search",
        "source   tests (Apache-2.0) 0",
        "note     random weights",
        "graph    caption_step: fp32",
        "token [rows], hidden [rows, 7], memory [images, 16, 5] -> logits [rows, 15]",
        "image    stretch to 8x8, bicubic",
        "text     15 tokens, context 16",
        "decode   ",
        "embed    8 dimensions, scale 10",
        "parity certificate:",
        "Random weights: it knows nothing.",
    ):
        assert words in printed.out


def test_inspect_as_json_is_the_manifest(command: Run, tiny_bundle_folder: Path) -> None:
    text = command("inspect", tiny_bundle_folder, "--json").out
    assert manifest.parse(text) == Bundle.open(tiny_bundle_folder).manifest


def test_inspect_by_name(command: Run, home: Path, tiny_bundle_folder: Path) -> None:
    shutil.copytree(tiny_bundle_folder, home / "mine")
    assert command("inspect", "mine").code == 0
    command("inspect", "mime").failed(1, "no model or bundle is called `mime`", "`mine`")


# --- verify


def test_verify(command: Run, tiny_bundle_folder: Path) -> None:
    printed = command("verify", tiny_bundle_folder)
    assert printed.code == 0
    assert printed.out.splitlines()[0] == "7 files as exported"
    assert printed.out.splitlines()[-1] == "tiny: verified"
    assert "FAILED" not in printed.out
    found = json.loads(command("verify", tiny_bundle_folder, "--json").out)
    assert found["passed"] is True
    assert found["problems"] == []
    stages = {m["stage"] for m in found["measurements"]}
    assert {"pixels", "image.regions", "decode", "token ids", "text.text_embedding"} <= stages
    assert all(m["passed"] for m in found["measurements"])


@pytest.mark.parametrize("name", ["caption_step.onnx", "tokenizer.json", "goldens.json"])
def test_verify_names_an_altered_file(command: Run, tiny_copy: Path, name: str) -> None:
    data = bytearray((tiny_copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tiny_copy / name).write_bytes(data)
    printed = command("verify", tiny_copy)
    assert printed.code == 1
    assert f"`{name}` was altered" in printed.out
    assert printed.out.splitlines()[-1] == "tiny: NOT as exported"
    found = command("verify", tiny_copy, "--json")
    assert found.code == 1
    assert json.loads(found.out)["passed"] is False
    assert name in json.loads(found.out)["problems"][0]


def test_verify_names_a_missing_a_truncated_and_a_foreign_file(command: Run, tiny_copy: Path) -> None:
    (tiny_copy / "more.bin").write_bytes(b"x")
    found = command("verify", tiny_copy)
    assert found.code == 1
    assert "`more.bin` is not named by the manifest" in found.out
    (tiny_copy / "more.bin").unlink()
    (tiny_copy / "goldens.json").write_bytes(b"{")
    command("verify", tiny_copy).failed(1, "`goldens.json` has 1 bytes")
    (tiny_copy / "goldens.json").unlink()
    command("verify", tiny_copy).failed(1, "`goldens.json` is missing")


def test_verify_notices_a_graph_that_computes_something_else(command: Run, tiny: ModuleType, tiny_copy: Path) -> None:
    """One weight changed, and a manifest that fits: the goldens tell."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(tiny_copy / "image_encoder.onnx")
    weight = model.graph.initializer[0]
    changed = numpy_helper.to_array(weight) * 1.02
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save_model(model, tiny_copy / "image_encoder.onnx")
    tiny.reseal(tiny_copy)
    printed = command("verify", tiny_copy)
    assert printed.code == 1
    assert "7 files as exported" in printed.out
    assert "FAILED image.regions" in printed.out
    assert "ok     pixels" in printed.out


def test_layers_are_shown_once_for_each_of_their_shapes() -> None:
    shapes = (4, 8, 4)
    tensors = tuple(TensorSpec(f"key.{i}", "float32", ("batch", size)) for i, size in enumerate(shapes))
    assert inspect_command._shapes(tensors) == "key.* [batch, 4], key.* [batch, 8]"


def test_a_bundle_without_goldens(command: Run, tiny: ModuleType, tiny_copy: Path) -> None:
    described = Bundle.open(tiny_copy).manifest
    (tiny_copy / "goldens.json").unlink()
    tiny.seal(tiny_copy, described, goldens="")
    command("verify", tiny_copy).failed(1, "has no goldens to verify")


@pytest.mark.parametrize("name", ["inspect", "verify"])
def test_places_that_are_no_bundle(command: Run, tmp_path: Path, name: str) -> None:
    command(name, tmp_path).failed(1, "is not a bundle")
    command(name, tmp_path / "gone").failed(1, "is not a folder")
    command(name, "../gone").failed(1, "is not a folder")
    command(name, "").failed(1, "no model or bundle is called ``")
    command(name).failed(2, "missing argument 'BUNDLE'")
