"""Our ClipCap beside the original modules: goldens made by `tests/golden/clipcap.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlrt_export.checkpoints import Checkpoint
from vlrt_export.clipcap_checkpoint import ClipCap, load_clipcap
from vlrt_export.clipcap_reference import generate_behind, plain_prefix, transformers_gpt2

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "clipcap.npz"
HEADS, STOP, LONGEST = 2, 7, 67


@pytest.fixture(params=["mlp", "transformer"])
def stored(request: pytest.FixtureRequest) -> dict[str, Any]:
    with np.load(GOLDEN) as every:
        return {k.partition("/")[2]: every[k] for k in every.files if k.startswith(f"{request.param}/")}


def load(stored: dict[str, Any]) -> ClipCap:
    named = {k.removeprefix("weights/"): torch.from_numpy(v) for k, v in stored.items() if k.startswith("weights/")}
    return load_clipcap(Checkpoint(named, {}, None, (), "golden"), HEADS)


def test_the_prefix_is_that_of_the_original_mapper(stored: dict[str, Any]) -> None:
    model, features = load(stored), torch.from_numpy(stored["features"])
    np.testing.assert_allclose(model.mapper(features).detach(), stored["prefix"], atol=1e-5)
    np.testing.assert_allclose(plain_prefix(model.weights(), features), stored["prefix"], atol=1e-5)


def test_greedy_captions_are_those_of_the_original_loop(stored: dict[str, Any]) -> None:
    """The library's `generate`, which the exported graphs are held to, stops where the original stops."""
    gpt = transformers_gpt2(load(stored))
    for image, prefix in enumerate(torch.from_numpy(stored["prefix"])):
        options = {"num_beams": 1, "do_sample": False, "max_new_tokens": LONGEST, "return_dict_in_generate": True}
        found = generate_behind(gpt, prefix[None], (STOP,), **options).sequences[0, len(prefix) :]
        assert found.tolist() == stored[f"greedy {image}"].tolist()
