"""A run over a folder that is stopped: whole lines stay, and the next run finishes the rest. In true processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

COUNT = 12

# Reading is slowed down so that the signal comes between two photographs, or within one.
SCRIPT = """
import time
from vlrt import image
load = image.load
def slow(source):
    time.sleep({delay})
    return load(source)
image.load = slow
from vlrt.cli import main
main()
"""


@pytest.fixture
def folder(photograph: Callable[..., Image.Image], tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for seed in range(COUNT):
        photograph(20, 20, seed=seed).save(tmp_path / "photos" / f"{seed:02}.png")
    return tmp_path / "photos"


def start(*arguments: object, delay: float = 0.1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT.format(delay=delay), *map(str, arguments)]
    # A parent that ignores interrupts (a shell's background job) would pass that on.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [(signal.SIGINT, 130, "error: interrupted"), (signal.SIGTERM, 143, ""), (signal.SIGKILL, -9, "")],
)
def test_captions_of_a_folder(
    tiny_bundle_folder: Path, folder: Path, tmp_path: Path, number: signal.Signals, code: int, message: str
) -> None:
    out = tmp_path / "o.jsonl"
    arguments = ("run", "caption", folder, "--out", out, "--batch-size", 1, "--model", tiny_bundle_folder)
    process = start(*arguments)
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.strip() == message
    before = out.read_text("utf-8")
    assert 2 <= before.count("\n") < COUNT
    assert before.endswith("\n")
    rest = start(*arguments, delay=0)
    _, errors = rest.communicate(timeout=60)
    assert rest.returncode == 0
    assert errors == f"{before.count(chr(10))} of {COUNT} photographs are already in {out}\n"
    after = out.read_text("utf-8")
    assert after.startswith(before)
    names = [os.path.basename(json.loads(line)["image"]) for line in after.splitlines()]
    assert names == [f"{seed:02}.png" for seed in range(COUNT)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "photos"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_match_leaves_no_file(
    tiny_bundle_folder: Path, folder: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "o.jsonl"
    out.write_text("before", "utf-8")
    photo = folder / "00.png"
    process = start("run", "match", photo, "a dog", "--out", out, "--model", tiny_bundle_folder, delay=20)
    wait_for(lambda: (tmp_path / ".o.jsonl.part").exists())
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert out.read_text("utf-8") == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "photos"]


# A step takes a while, so that the signal comes between two of them.
PAINTING = """
import time
from vlrt.commands import painting
told = painting.StepProgress.__call__
def slow(self, step):
    told(self, step)
    time.sleep(0.1)
painting.StepProgress.__call__ = slow
from vlrt.cli import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_painting_leaves_no_half_picture(
    latent_bundle: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out, preview = tmp_path / "o.png", tmp_path / "o.preview.png"
    out.write_bytes(b"before")
    arguments = ("run", "generate", "a dog", "-o", out, "--steps", 200, "--preview", 1, "--model", latent_bundle)
    process = subprocess.Popen(
        [sys.executable, "-c", PAINTING, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_for(preview.exists)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert out.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["o.png"]
