"""What `vlrt bench` says of the kernels that ran."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions, Sessions, custom_kernels
from vlrt.product_kernels import describe_kernels


def described(folder: Path, device: str = "cpu") -> str:
    sessions = Sessions(Bundle.open(folder), EngineOptions(device=device, threads=1))
    sessions.prepare(["caption_memory", "caption_step"])
    return describe_kernels(sessions.loaded())


def test_kernels_are_told_by_their_makers(tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLRT_KERNELS", "0")
    theirs = re.fullmatch(r"onnxruntime's own, (\d+) products", described(tiny_bundle_folder))
    assert theirs is not None
    monkeypatch.setenv("VLRT_KERNELS", "always")
    ours = described(tiny_bundle_folder)
    if custom_kernels.level():
        found = re.fullmatch(rf"vlrt {custom_kernels.level_name()}, (\d+) of (\d+) products", ours)
        assert found is not None
        assert 0 < int(found[1]) <= int(found[2]) == int(theirs[1])
    else:
        assert ours == theirs.string


def test_other_engines_run_kernels_of_their_own(tiny_bundle_folder: Path) -> None:
    assert described(tiny_bundle_folder, "openvino") == ""
