"""`vlrt export --via optimum`: what Optimum wrote becomes a bundle with hashes, certificate and goldens.

Optimum pins the libraries it works with, so it is not part of the tests' environment: a module in its place gives what
its exporter gave when `tests/golden/foreign.py` ran. The weights beside that are the ones it was given.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

from vlrt.bundle import Bundle
from vlrt.cli import root
from vlrt.errors import VlrtError
from vlrt.verify import verify
from vlrt_export.parity import ParityError
from vlrt_export.via_optimum import export_via_optimum

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "foreign_merged"
SIGLIP = GOLDEN.parent / "foreign_siglip"
_STAND_IN = """
import pathlib, shutil

def main_export(source, written, task, do_validation, trust_remote_code):
    assert task == {task!r} and not trust_remote_code
    if not (pathlib.Path(source) / "model.safetensors").is_file():
        raise RuntimeError("no weights")
    for path in pathlib.Path({golden!r}).iterdir():
        if path.name not in ("model.safetensors", "golden.json"):
            shutil.copy(path, written)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return weights_of(GOLDEN, tmp_path / "checkpoint")


def weights_of(golden: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in golden.iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, folder)
    return folder


@pytest.fixture
def optimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(GOLDEN, "image-to-text-with-past", tmp_path, monkeypatch)


def install(golden: Path, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "installed" / "optimum" / "exporters" / "onnx"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_STAND_IN.format(golden=str(golden), task=task), "utf-8")
    forget(monkeypatch)
    monkeypatch.syspath_prepend(tmp_path / "installed")


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "optimum"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.usefixtures("optimum")
def test_the_command_writes_a_proven_bundle(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "wrapped"
    done = CliRunner().invoke(root, ["export", str(checkpoint), "--via", "optimum", "-o", str(target), "--json"])
    assert done.exit_code == 0, done.output
    bundle = Bundle.open(target)
    assert not bundle.is_foreign
    assert not list(bundle.problems())
    assert bundle.manifest.source.revision.startswith("sha256:")
    stages = {line.stage for line in bundle.manifest.certificate}
    assert stages == {"pixels", "image_encoder", "captions, greedy", "captions, beam 3", "captions, beam 5"}
    assert all(line.passed for line in verify(bundle))


def test_siglip_is_wrapped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(SIGLIP, "feature-extraction", tmp_path, monkeypatch)
    source, target = weights_of(SIGLIP, tmp_path / "siglip"), tmp_path / "wrapped"
    # The golden's tokenizer adds no end by itself, as SigLIP's does.
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.save(str(source / "tokenizer.json"))
    described = export_via_optimum(str(source), target)
    assert described.tasks == ("embed", "match", "search")
    assert {line.stage for line in described.certificate} == {"pixels", "ids", "image embedding", "text embedding"}
    assert all(line.passed for line in verify(Bundle.open(target)))


@pytest.mark.usefixtures("optimum")
def test_graphs_of_other_weights_are_not_written(checkpoint: Path, tmp_path: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    name = "encoder.encoder.layer.0.output.dense.weight"
    weights[name] = weights[name] + 0.1 * torch.randn(weights[name].shape)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ParityError, match="image_encoder"):
        export_via_optimum(str(checkpoint), tmp_path / "wrapped")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "installed"]


@pytest.mark.usefixtures("optimum")
def test_a_model_the_runtime_does_not_serve_is_named(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    (checkpoint / "config.json").write_text(json.dumps(config | {"model_type": "whisper"}), "utf-8")
    with pytest.raises(VlrtError, match=r"is a `whisper` model; .* serves `vision-encoder-decoder`, `clip`, `siglip`"):
        export_via_optimum(str(checkpoint), tmp_path / "wrapped")


def test_without_optimum_it_says_what_to_install(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    package = tmp_path / "installed" / "optimum"  # as other libraries leave it: a package without the exporter
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", "utf-8")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    with pytest.raises(VlrtError, match="needs Optimum's ONNX exporter") as caught:
        export_via_optimum(str(checkpoint), tmp_path / "wrapped")
    assert "vlrt[optimum]" in caught.value.hint
