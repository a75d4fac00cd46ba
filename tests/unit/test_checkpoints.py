"""Checkpoints of every layout give the same tensors as torch itself."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vlrt.errors import VlrtError
from vlrt_export.checkpoints import Checkpoint, open_checkpoint


class Encoder(nn.Module):
    """Stands for a module class that exists only where the checkpoint was written."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.small = nn.Parameter(torch.randn(3, 5).half())
        self.turned = nn.Parameter(torch.arange(12.0).reshape(3, 4).t())
        self.register_buffer("ids", torch.arange(7))
        self.register_buffer("transient", torch.ones(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.resnet(x)


def assert_same(checkpoint: Checkpoint, expected: dict[str, torch.Tensor], prefix: str = "") -> None:
    found = {name.removeprefix(prefix) for name in checkpoint.tensors if name.startswith(prefix)}
    assert found == set(expected)
    for name, tensor in expected.items():
        got = checkpoint.tensors[prefix + name]
        assert got.dtype == tensor.dtype, name
        assert torch.equal(got, tensor), name


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict(tmp_path: Path, zipped: bool) -> None:
    model = Encoder()
    path = tmp_path / "model.pth"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(path)
    assert checkpoint.layout == "state-dict"
    assert checkpoint.origin == "model.pth"
    assert checkpoint.revision == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same(checkpoint, model.state_dict())


@pytest.mark.parametrize("zipped", [True, False])
def test_modules_pickled_whole_in_a_training_checkpoint(tmp_path: Path, zipped: bool) -> None:
    encoder, decoder = Encoder(), nn.LSTMCell(3, 4)
    optimizer = torch.optim.Adam(decoder.parameters())
    decoder(torch.zeros(2, 3))[0].sum().backward()
    optimizer.step()
    state = {
        "epoch": 3,
        "bleu-4": 0.21,
        "encoder": encoder,
        "decoder": nn.DataParallel(decoder),
        "optimizer": optimizer,
    }
    path = tmp_path / "BEST_checkpoint.pth.tar"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint, encoder.state_dict(), "encoder.")
    assert_same(checkpoint, decoder.state_dict(), "decoder.")
    assert len(checkpoint.tensors) == len(encoder.state_dict()) + len(decoder.state_dict())
    assert checkpoint.values == {"epoch": 3, "bleu-4": 0.21}


def test_training_checkpoint_is_opened_at_its_state_dict(tmp_path: Path) -> None:
    model = nn.DataParallel(Encoder())
    torch.save({"state_dict": model.state_dict(), "epoch": 50}, tmp_path / "model.pth.tar-50")
    checkpoint = open_checkpoint(tmp_path / "model.pth.tar-50")
    assert_same(checkpoint, model.module.state_dict())
    assert checkpoint.values == {"epoch": 50}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_archive(tmp_path: Path) -> None:
    model = Encoder().eval()
    torch.jit.trace(model, torch.zeros(1, 3, 8, 8)).save(str(tmp_path / "clip.pt"))
    checkpoint = open_checkpoint(tmp_path / "clip.pt")
    assert checkpoint.layout == "torchscript"
    for name, tensor in model.state_dict().items():
        assert torch.equal(checkpoint.tensors[name], tensor), name


def test_safetensors_and_folders(tmp_path: Path) -> None:
    tensors = {"a.weight": torch.randn(4, 3), "b": torch.arange(5)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert_same(open_checkpoint(tmp_path / "model.safetensors"), tensors)
    folder = open_checkpoint(tmp_path)
    assert folder.config == {"model_type": "clip"}
    assert folder.origin == tmp_path.name
    assert folder.file("config.json")
    assert folder.file("vocab.json") is None
    assert_same(folder, tensors)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded_folder(tmp_path: Path, suffix: str) -> None:
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    tensors = {"a": torch.randn(4, 3), "b": torch.arange(5)}
    files = {name: f"{stem}-0000{i}-of-00002.{suffix}" for i, name in enumerate(tensors, 1)}
    for name, file in files.items():
        save = save_file if suffix == "safetensors" else torch.save
        save({name: tensors[name]}, tmp_path / file)
    (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": files}))
    checkpoint = open_checkpoint(tmp_path)
    assert_same(checkpoint, tensors)
    assert checkpoint.revision.startswith("sha256:")
    assert len(checkpoint.files) == 2


@pytest.mark.parametrize("name", ["../model.safetensors", "missing.safetensors"])
def test_index_may_not_point_elsewhere(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(VlrtError, match=r"plain file name|lacks"):
        open_checkpoint(folder)


def test_folder_with_several_weight_files_wants_a_name(tmp_path: Path) -> None:
    for name in ("encoder", "decoder"):
        save_file({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(VlrtError, match=r"several weight files: `decoder.safetensors`, `encoder.safetensors`"):
        open_checkpoint(tmp_path)
    assert list(open_checkpoint(tmp_path, weights="encoder.safetensors").tensors) == ["encoder"]


def test_tensors_are_not_read_before_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    tensor = open_checkpoint(path).tensors["a"]
    data = bytearray(path.read_bytes())
    offset = data.index(b"\0" * 4000)
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(torch.ones(1000).numpy().tobytes())
    assert torch.equal(tensor, torch.ones(1000))


def test_missing_path_and_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", _refuse)
    with pytest.raises(VlrtError, match="does not exist"):
        open_checkpoint(tmp_path / "nothing.pt")
    with pytest.raises(
        VlrtError, match="neither a local path nor to be had from the hub: it cannot be reached"
    ) as caught:
        open_checkpoint("openai/clip-vit-base-patch32")
    assert "local folder" in caught.value.hint
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _unknown)
    with pytest.raises(VlrtError, match="from the hub: no such repository\nhint"):
        open_checkpoint("openai/clip-vit-base-patch32")


def _unknown(*_: object, **__: object) -> None:
    raise ValueError("no such repository\nand a second line")


def _refuse(*_: object, **__: object) -> None:
    raise ConnectionError("no network\nand a second line")


class Hub:
    """Stands for the hub: one repository at one commit."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder, self.files, self.wanted = folder, files, []

    def model_info(self, *_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(sha="c0ffee", siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot_download(self, name: str, **options: object) -> str:
        self.wanted.append((name, options))
        return str(self.folder)


@pytest.mark.parametrize("safe", [True, False])
def test_hub_ids_fetch_one_form_of_the_weights(safe: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    files = ["config.json", "pytorch_model.bin", "flax_model.msgpack"] + ["model.safetensors"] * safe
    hub = Hub(tmp_path, files)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", hub.model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    checkpoint = open_checkpoint("owner/name@main")
    ((name, options),) = hub.wanted
    patterns = options["allow_patterns"]
    assert (checkpoint.origin, checkpoint.revision, name, options["revision"]) == (
        "owner/name",
        "c0ffee",
        name,
        "c0ffee",
    )
    assert name == "owner/name"
    assert ("*.safetensors" in patterns, "*.bin" in patterns) == (safe, not safe)
    assert "tokenizer.json" in patterns
    assert torch.equal(checkpoint.tensors["a"], torch.ones(2))


def test_hub_copy_is_used_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "snapshots" / "deadbeef"
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, snapshot / "model.safetensors")
    hub = Hub(snapshot, [])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    assert open_checkpoint("owner/name").revision == "deadbeef"
    assert hub.wanted[0][1]["local_files_only"] is True
