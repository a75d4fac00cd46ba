"""Names of models: where their bundles lie, which is the default, and what an unknown one may have meant."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import vlrt
from vlrt import tasks, zoo
from vlrt.errors import BundleError, UsageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLRT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_zoo_reads_and_every_default_is_in_it() -> None:
    known = zoo.zoo()
    assert known.models
    for task, name in known.defaults.items():
        assert task in tasks.TASKS
        assert task in known.models[name].tasks


def test_what_yaml_said_is_kept_and_a_damaged_copy_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path))
    first = zoo.zoo.__wrapped__()
    (kept,) = (tmp_path / "zoo").iterdir()
    content = kept.read_bytes()
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert zoo.zoo.__wrapped__() == first
    monkeypatch.undo()
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path))
    kept.write_bytes(content[:-9])
    assert zoo.zoo.__wrapped__() == first
    assert kept.read_bytes() == content


def test_every_entry_is_sound() -> None:
    for name, entry in zoo.zoo().models.items():
        assert set(entry.tasks) <= set(tasks.TASKS), name
        assert entry.summary, name
        assert entry.precisions, name
        assert all(limit > 0 for limit in entry.tolerances.values()), name


def test_every_family_has_its_file() -> None:
    """File name = family name."""
    families = Path(__file__).parents[2] / "export" / "vlrt_export" / "families"
    for name, entry in zoo.zoo().models.items():
        assert (families / f"{entry.family.replace('-', '_')}.py").is_file(), name


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("VLRT_HOME", "/x", "/x"), ("XDG_DATA_HOME", "/d", "/d/vlrt"), ("HOME", "/h", "/h/.local/share/vlrt")],
)
def test_home(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str) -> None:
    for name in ("VLRT_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert zoo.home() == Path(expected)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [("VLRT_CACHE", "/x", "/x"), ("XDG_CACHE_HOME", "/d", "/d/vlrt"), ("HOME", "/h", "/h/.cache/vlrt")],
)
def test_cache(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str) -> None:
    for name in ("VLRT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert zoo.cache_folder() == Path(expected)


def test_a_name_is_a_bundle_of_the_user(home: Path, tiny_bundle_folder: Path) -> None:
    assert zoo.exported() == []
    shutil.copytree(tiny_bundle_folder, home / "mine")
    (home / "no-bundle").mkdir()
    assert zoo.exported() == ["mine"]
    assert zoo.locate("mine") == home / "mine"
    assert zoo.find("mine") == home / "mine"
    assert zoo.resolve("mine", "caption").path == home / "mine"


def test_a_users_own_bundle_comes_before_the_shipped_one(home: Path, tiny_bundle_folder: Path) -> None:
    name = zoo.zoo().defaults["caption"]
    shutil.copytree(tiny_bundle_folder, home / name)
    assert zoo.resolve(None, "caption").path == home / name


def test_a_path_is_a_path(home: Path, tiny_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zoo.find(tiny_bundle_folder) == tiny_bundle_folder
    monkeypatch.chdir(tiny_bundle_folder)
    assert zoo.find(".") == Path()
    monkeypatch.chdir(tiny_bundle_folder.parent)
    assert zoo.find("tiny") == Path("tiny")
    with pytest.raises(BundleError, match="is not a folder"):
        zoo.resolve("./absent", "caption")


@pytest.mark.parametrize(
    ("name", "near"), [("clip-vit-b32", "`clip-vit-b-32`"), ("flickr8k", "`flickr8k-captioner`"), ("mime", "`mine`")]
)
def test_an_unknown_name_gives_the_nearest(home: Path, tiny_bundle_folder: Path, name: str, near: str) -> None:
    shutil.copytree(tiny_bundle_folder, home / "mine")
    for find in (zoo.find, zoo.entry):
        with pytest.raises(BundleError, match=f"no model or bundle is called `{name}`") as caught:
            find(name)
        assert caught.value.hint.startswith("did you mean")
        assert near in caught.value.hint


def test_a_name_like_no_other(home: Path) -> None:
    with pytest.raises(BundleError) as caught:
        zoo.find("qqqqqqqq")
    assert caught.value.hint == "`vlrt models` lists them"


def test_a_model_that_is_not_exported_yet(home: Path) -> None:
    with pytest.raises(BundleError, match="`clip-vit-b-32` is not exported yet") as caught:
        zoo.resolve("clip-vit-b-32", "embed")
    assert caught.value.hint.startswith("vlrt export clip-vit-b-32")


def test_a_bundle_that_does_not_serve_the_task(home: Path, tiny_bundle_folder: Path) -> None:
    with pytest.raises(BundleError, match="`tiny` does not serve `paint`") as caught:
        zoo.resolve(tiny_bundle_folder, "paint")
    assert "vlrt models" in caught.value.hint


def test_a_task_without_a_default(home: Path) -> None:
    with pytest.raises(BundleError, match="no default model serves `paint`"):
        zoo.resolve(None, "paint")


def test_loading_by_task(tiny_bundle_folder: Path) -> None:
    for task in ("caption", "match", "search", "embed", "classify"):
        assert type(vlrt.load(task, tiny_bundle_folder)).__name__ == tasks.TASKS[task]
    with pytest.raises(UsageError, match="there is no task `paint`") as caught:
        vlrt.load("paint")
    assert "`caption`" in caught.value.hint
    with pytest.raises(UsageError, match="unknown device `tpu`"):
        vlrt.load("caption", tiny_bundle_folder, device="tpu")(np.zeros((8, 8, 3), np.uint8))
