"""Hostile and damaged checkpoint files: each is one clear error, and nothing from the file is imported or run."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from vlrt.errors import VlrtError
from vlrt_export.checkpoints import open_checkpoint
from vlrt_export.inert_pickle import Global, Record, read_pickle


class Evil:
    """Pickles as a call of any callable with any arguments."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def write_archive(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for key, value in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", value)
    return path


def tensor_pickle(key: str, numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A state dict {"w": tensor} whose tensor claims whatever is asked."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", numel) if isinstance(obj, Storage) else None

    stream = io.BytesIO()
    rebuild = Evil(torch._utils._rebuild_tensor_v2, Storage(), offset, size, stride, False, {})
    Pickler(stream, 2).dump({"w": rebuild})
    return stream.getvalue()


@pytest.mark.parametrize("protocol", range(6))
def test_calls_become_data(protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    value = read_pickle(io.BytesIO(pickle.dumps(Evil(exec, f"open({str(mark)!r}, 'w')"), protocol)))
    assert isinstance(value, Record)
    assert isinstance(value.kind, Global)
    assert value.kind.name == "exec"
    assert not mark.exists()


@pytest.mark.parametrize("function", ["os.system", "builtins.eval", "subprocess.Popen", "posix.system"])
def test_calls_inside_an_archive_are_never_made(function: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    module, name = function.rsplit(".", 1)
    opcodes = f"c{module}\n{name}\n(X".encode() + struct.pack("<I", len(f"touch {mark}")) + f"touch {mark}tR.".encode()
    path = write_archive(tmp_path / "evil.pt", b"\x80\x02}X\x01\0\0\0w" + opcodes[:-1] + b"s.")
    with pytest.raises(VlrtError, match="no named tensors"):
        open_checkpoint(path)
    assert not mark.exists()


def test_modules_named_in_a_pickle_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "vlrt_attack_module.py").write_text("raise SystemExit")
    path = write_archive(tmp_path / "evil.pt", b"\x80\x02cvlrt_attack_module\nThing\n.")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(VlrtError, match="no named tensors"):
            open_checkpoint(path)
    finally:
        sys.path.remove(str(tmp_path))
    assert "vlrt_attack_module" not in sys.modules


def test_weights_beside_an_attack_still_load_and_the_attack_stays_data(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"w": torch.ones(3), "x": Evil(exec, f"open({str(mark)!r}, 'w')")}, tmp_path / "mixed.pt")
    checkpoint = open_checkpoint(tmp_path / "mixed.pt")
    assert list(checkpoint.tensors) == ["w"]
    assert torch.equal(checkpoint.tensors["w"], torch.ones(3))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("numel", "size", "stride", "offset"),
    [
        (4, (5,), (1,), 0),
        (4, (2, 2), (4, 1), 0),
        (4, (4,), (1,), 1),
        (4, (-1,), (1,), 0),
        (4, (2,), (-1,), 3),
        (4, (2, 2), (1,), 0),
        (1 << 40, (4,), (1,), 0),
        (4, (1 << 40,), (0,), 0),
        (4, (2**62, 4), (0, 0), 0),
    ],
)
def test_tensors_larger_than_their_storage(
    tmp_path: Path, numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    path = write_archive(tmp_path / "w.pt", tensor_pickle("0", numel, size, stride, offset), {"0": b"\0" * 16})
    with pytest.raises(VlrtError, match="is damaged: a tensor cannot be rebuilt"):
        open_checkpoint(path)


def test_storage_that_is_not_in_the_archive(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "w.pt", tensor_pickle("../../etc/passwd", 4, (4,), (1,)), {"0": b"\0" * 16})
    with pytest.raises(VlrtError, match="is damaged"):
        open_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncation_anywhere_is_an_error(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(64), "v": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(VlrtError):
            open_checkpoint(path)


def test_flipped_bytes_raise_no_other_error(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(4), "v": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for flip in (0xFF, 0x01, 0x20):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
            with contextlib.suppress(VlrtError):
                open_checkpoint(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"(" * 50_000 + b"t" * 50_000 + b".",
        b"\x80\x02" + b"}X\x01\0\0\0a" * 5_000 + b"N" + b"s" * 5_000 + b".",
        b"\x80\x02}q\x01" + b"}X\x01\0\0\0ah\x01sX\x01\0\0\0bh\x01sq\x01" * 60 + b".",
        b"\x80\x02}q\x00X\x01\0\0\0ah\x00s.",
        b"\x80\x02K\x01q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"}h\x00K\x01s.",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02R.",
        b"\x80\x02.",
        b"I" + b"9" * 100_000 + b"\n.",
    ],
    ids=[
        "deep tuple",
        "deep dict",
        "doubling dict",
        "self",
        "doubling key",
        "memo",
        "length",
        "extension",
        "empty call",
        "empty",
        "digits",
    ],
)
def test_malformed_and_recursive_pickles(tmp_path: Path, data: bytes) -> None:
    path = write_archive(tmp_path / "evil.pt", data)
    with pytest.raises(VlrtError) as caught:
        open_checkpoint(path)
    assert "`evil.pt`" in caught.value.what


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.pt", b"", "is damaged: it is empty"),
        ("text.pt", b"hello", "is not a file that torch wrote"),
        ("plain.pt", pickle.dumps({"a": 1}), "is a pickle, but not a torch checkpoint"),
        ("model.safetensors", b"\xff" * 64, "is damaged"),
        ("model.safetensors", b"", "is damaged"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VlrtError, match=message):
        open_checkpoint(tmp_path / name)


def test_zip_of_something_else_and_compressed_pickle(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(VlrtError, match="is a zip archive"):
        open_checkpoint(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 1_000_000)
    with pytest.raises(VlrtError, match="compressed"):
        open_checkpoint(tmp_path / "b.pt")
