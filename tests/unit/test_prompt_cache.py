"""Prompts are encoded once: remembered by content, forgotten in order, never taken for another bundle's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from vlrt import load
from vlrt.bundle import Bundle
from vlrt.diffusion.prompt_cache import PromptCache, key_of
from vlrt.engines import Sessions

ARRAYS = {"prompt_states": np.arange(12, dtype=np.float32).reshape(1, 3, 4), "file": np.ones((1, 2), np.int64)}


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Chains that ran, from now on."""
    found: list[tuple[str, ...]] = []
    run = Sessions.run_chain

    def seen(self: Sessions, roles: Any, arrays: Any) -> Any:
        found.append(tuple(roles))
        return run(self, roles, arrays)

    monkeypatch.setattr(Sessions, "run_chain", seen)
    return found


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prompt-states"


def same(one: Any, other: Any) -> bool:
    return bool(one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one))


def test_what_was_put_is_got_in_another_process_too(tmp_path: Path) -> None:
    PromptCache(tmp_path).put("a", ARRAYS)
    found = PromptCache(tmp_path).get("a")
    assert found is not None
    assert same(found, ARRAYS)
    assert {name: array.dtype for name, array in found.items()} == {k: v.dtype for k, v in ARRAYS.items()}
    assert PromptCache(tmp_path).get("b") is None
    assert PromptCache(tmp_path, keeps=False).get("a") is None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    cache.put("a", ARRAYS)
    size = (tmp_path / "a.npz").stat().st_size
    cache.put("b", ARRAYS)
    for age, name in enumerate(("b", "a")):
        os.utime(tmp_path / f"{name}.npz", (1000 + age, 1000 + age))
    PromptCache(tmp_path, most_bytes=2 * size).put("c", ARRAYS)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c"]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04damaged"])
def test_a_damaged_file_is_absent(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    cache = PromptCache(tmp_path)
    assert cache.get("a") is None
    cache.put("a", ARRAYS)
    assert PromptCache(tmp_path).get("a") is not None


def test_a_folder_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    cache = PromptCache(tmp_path / "file")
    cache.put("a", ARRAYS)
    assert cache.get("a") is not None


def test_a_prompt_is_encoded_once(latent_bundle: Path, encoded: list[tuple[str, ...]], own_cache: Path) -> None:
    first = load("generate", latent_bundle)("a red car", seed=1)
    assert encoded.count(("text_encoder",)) == 2
    assert len(list(own_cache.iterdir())) == 2
    again = load("generate", latent_bundle)("a red car", seed=1)
    load("generate", latent_bundle)("a red car", seed=1, guidance=1.0)
    assert encoded.count(("text_encoder",)) == 2
    assert np.array_equal(first.pixels, again.pixels)
    load("generate", latent_bundle)("a red cat", seed=1)
    assert encoded.count(("text_encoder",)) == 3


def test_another_export_of_the_same_name_has_its_own(
    tiny: ModuleType, tiny_diffusion: ModuleType, latent_bundle: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(latent_bundle, tmp_path / "latent"))
    before, ids = Bundle.open(latent_bundle), {"input_ids": np.ones((1, 8), np.int64)}
    assert key_of(before, ["text_encoder"], "cpu", ids) == key_of(Bundle.open(other), ["text_encoder"], "cpu", ids)
    changed = tiny_diffusion.text_encoder()
    changed.weights[0].raw_data = np.full((15, 6), 0.25, np.float32).tobytes()
    changed.save(other)
    tiny.reseal(other)
    after = Bundle.open(other)
    assert key_of(before, ["text_encoder"], "cpu", ids) != key_of(after, ["text_encoder"], "cpu", ids)
    pictures = [
        load("generate", folder)("a red car", seed=1).pixels for folder in (latent_bundle, other, latent_bundle)
    ]
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


def test_device_and_inputs_tell_keys_apart(latent_bundle: Path) -> None:
    bundle, ids = Bundle.open(latent_bundle), np.ones((1, 8), np.int64)
    make: Callable[..., str] = lambda device="cpu", **arrays: key_of(bundle, ["text_encoder"], device, arrays)  # noqa: E731
    keys = [make(a=ids), make("openvino:CPU", a=ids), make(b=ids), make(a=ids + 1), make(a=ids.reshape(2, 4)), make()]
    assert len(set(keys)) == len(keys)
