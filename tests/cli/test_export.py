"""`vlrt export`: whatever stops it, nothing half-written stays and an older bundle is kept."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from vlrt.bundle import Bundle
from vlrt.manifest import ImageSpec, Source
from vlrt_export import bundle_writer, request
from vlrt_export.graph import Graph, Plan
from vlrt_export.trace import trace

torch.set_num_threads(1)

Run = Callable[..., Any]
FULL = OSError(28, "No space left on device")


class Doubler(nn.Module):
    """The least that can be exported."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels * 2


def make_plan(tokenizer: Path, module: nn.Module | None = None, **changes: Any) -> Plan:
    graph = Graph(
        role="image_encoder",
        module=module or Doubler(),
        inputs={"pixels": torch.ones(2, 3, 4, 4)},
        outputs=["regions"],
        dynamic={"pixels": {0: "batch"}},
        output_axes={"regions": {0: "batch"}},
        cases=[{"pixels": torch.ones(3, 3, 4, 4)}],
    )
    fields: dict[str, Any] = {
        "name": "doubler",
        "family": "clip",
        "tasks": ["embed"],
        "graphs": [graph],
        "source": Source("tests", "0", "Apache-2.0"),
        "image": ImageSpec((4, 4), (0, 0, 0), (1, 1, 1)),
        "files": {"notes.txt": b"hello", "tokenizer.json": tokenizer},
    }
    return Plan(**(fields | changes))


@functools.cache
def traced() -> bytes:
    """The graph is traced for real, once."""
    return bytes(trace(make_plan(Path()).graphs[0]).SerializeToString())


@pytest.fixture
def plan(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    import onnx

    monkeypatch.setattr(bundle_writer, "trace", lambda graph: onnx.load_from_string(traced()))
    path = tmp_path / "source.json"
    path.write_text(tiny.tokenizer_json(), "utf-8")
    return make_plan(path)


@pytest.fixture
def export(command: Run, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(request, "build", lambda request: plan)
    return lambda *arguments: command("export", "clip", "--random", "-o", tmp_path / "out" / "bundle", *arguments)


def left(tmp_path: Path) -> list[str]:
    folder = tmp_path / "out"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def failing(problem: BaseException, *, when: Callable[..., bool] = lambda *args: True, real: Any = None) -> Any:
    def call(*args: Any, **more: Any) -> Any:
        if when(*args):
            raise problem
        return real(*args, **more)

    return call


def test_a_bundle_appears_whole(export: Run, tmp_path: Path) -> None:
    found = export("--json")
    assert found.code == 0
    report = json.loads(found.out)
    assert report["bundle"] == str(tmp_path / "out" / "bundle")
    assert report["certificate"][0]["value"] == 0
    assert left(tmp_path) == ["bundle"]
    bundle = Bundle.open(tmp_path / "out" / "bundle")
    assert list(bundle.problems()) == []
    assert set(bundle.manifest.files) == {"image_encoder.onnx", "notes.txt", "tokenizer.json", "goldens.json"}
    assert oct(bundle.path.stat().st_mode)[-3:] == "755"
    assert str(tmp_path) not in (bundle.path / "manifest.json").read_text("utf-8"), "no path of this machine"


def test_an_existing_target_is_not_touched_without_force(export: Run, tmp_path: Path) -> None:
    export()
    before = (tmp_path / "out" / "bundle" / "manifest.json").stat().st_mtime_ns
    export().failed(1, "already exists", "--force")
    assert (tmp_path / "out" / "bundle" / "manifest.json").stat().st_mtime_ns == before
    assert export("--force").code == 0
    assert (tmp_path / "out" / "bundle" / "manifest.json").stat().st_mtime_ns != before
    assert left(tmp_path) == ["bundle"]


def test_only_bundles_are_replaced(export: Run, tmp_path: Path) -> None:
    target = tmp_path / "out" / "bundle"
    target.mkdir(parents=True)
    (target / "thesis.txt").write_text("years of work")
    export("--force").failed(1, "is not a bundle, so it is not replaced")
    assert (target / "thesis.txt").read_text() == "years of work"
    shutil.rmtree(target)
    target.write_text("a file")
    export("--force").failed(1, "is not a bundle, so it is not replaced")
    target.unlink()
    export()
    target.rename(tmp_path / "real")
    target.symlink_to(tmp_path / "real")
    export("--force").failed(1, "is not a bundle, so it is not replaced")
    assert (tmp_path / "real" / "manifest.json").is_file()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("problem", [FULL, KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("place", ["graph", "tokenizer", "goldens", "manifest", "rename"])
def test_whatever_stops_it_nothing_stays(
    export: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, problem: BaseException, force: bool
) -> None:
    before = None
    if force:
        export()
        before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "out" / "bundle").iterdir())
    if place == "graph":
        save = bundle_writer.onnx.save_model

        def half(model: Any, target: Path, **more: Any) -> None:
            save(model, target, **more)
            target.write_bytes(target.read_bytes()[:50])
            raise problem

        monkeypatch.setattr(bundle_writer.onnx, "save_model", half)
    elif place == "tokenizer":
        monkeypatch.setattr(bundle_writer.shutil, "copyfile", failing(problem))
    elif place == "goldens":
        monkeypatch.setattr(bundle_writer, "write_goldens", failing(problem))
    elif place == "manifest":
        monkeypatch.setattr(bundle_writer.os, "fsync", failing(problem))
    else:
        into = failing(
            problem,
            when=lambda _, target: Path(target).name == "bundle" and Path(target).parent == tmp_path / "out",
            real=os.rename,
        )
        rename = os.rename

        def rename_but_not_out(source: Any, target: Any) -> None:
            # Moving the old bundle back to its place must still work.
            rename(source, target) if ".old." in str(source) else into(source, target)

        monkeypatch.setattr(bundle_writer.os, "rename", rename_but_not_out)
    found = export(*(["--force"] if force else []))
    monkeypatch.undo()
    if problem is FULL:
        assert found.code == 1
        errors = [line for line in found.err.splitlines() if not line.endswith(" …")]
        assert "No space left on device" in errors[0]
        assert errors[0].startswith("error: writing `")
        assert errors[1].startswith("hint: ")
    else:
        assert found.code == (130 if isinstance(problem, KeyboardInterrupt) else 143)
    assert left(tmp_path) == (["bundle"] if force else [])
    if force:
        assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "out" / "bundle").iterdir()) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_while_exporting(
    export: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """A true signal, while the staging folder holds a graph."""
    seen: list[str] = []

    def stop(*args: Any, **more: Any) -> None:
        seen.extend(left(tmp_path))
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 5)

    monkeypatch.setattr(bundle_writer, "measure_graph", stop)
    before = signal.getsignal(signal.SIGTERM)
    assert export().code == code
    assert len(seen) == 1
    assert left(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_graph_that_fails_parity_is_not_written(plan: Plan, export: Run, tmp_path: Path) -> None:
    class Tripler(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels * 3

    plan.graphs[0] = make_plan(Path(), Tripler()).graphs[0]  # type: ignore[index]
    found = export()
    assert found.code == 1
    assert (
        "error: `image_encoder.regions` fails parity: max abs error over 2 cases is 1, the limit is 0.0001" in found.err
    )
    assert left(tmp_path) == []


def test_places_that_cannot_be_written(
    command: Run, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "build", lambda request: plan)
    (tmp_path / "file").write_text("x")
    command("export", "clip", "--random", "-o", tmp_path / "file" / "bundle").failed(1, "cannot be written")
    monkeypatch.setattr(bundle_writer.tempfile, "mkdtemp", failing(PermissionError(13, "Permission denied")))
    command("export", "clip", "--random", "-o", tmp_path / "bundle").failed(1, "cannot be written: Permission denied")


def test_requests_that_cannot_be_meant(command: Run, tmp_path: Path) -> None:
    target = tmp_path / "b"
    command("export", "clip", "-o", target).failed(2, "`b` needs a checkpoint", "--source CHECKPOINT")
    command("export", "clip", "--random", "--source", "x", "-o", target).failed(2, "exclude each other")
    command("export", "clipp", "-o", target).failed(1, "no model or bundle is called `clipp`", "`clip`")
    command("export", "clip", "--random", "--seed", -1, "-o", target).failed(2, "invalid value for '--seed'")
    command("export", "flickr8k-captioner", "--random", "--attention", "blurred", "-o", target).failed(
        2, "there is no attention `blurred`"
    )
    command("export", "flickr8k-captioner", "--source", tmp_path, "-o", target).failed(1, "")
    command("export", "flickr8k-captioner", "--source", tmp_path / "gone.pth", "-o", target).failed(1, "gone.pth")
    assert list(tmp_path.iterdir()) == []


def test_without_an_output_the_bundle_goes_home(
    command: Run, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "build", lambda request: plan)
    monkeypatch.setenv("VLRT_HOME", str(tmp_path / "home"))
    assert command("export", "clip", "--random").code == 0
    assert Bundle.open(tmp_path / "home" / "clip").name == "doubler"
    assert command("inspect", "clip").code == 0
