"""The gate for codecs: reconstructions and pictures of a reduced graph against fp32's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.zoo import Entry
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.calibration import Calibration, synthetic
from vlrt_export.families import vq_vae as family
from vlrt_export.gate_metrics import metrics_of
from vlrt_export.request import Request
from vlrt_export.trial import TrialSessions

LIMITS = zoo.zoo().gate
SIZES = {"hidden": 8, "residual": 4, "blocks": 1, "width": 4, "codebook": 16}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    """Two codecs of other weights."""
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("codecs")
    for seed in (1, 2):
        request = Request(f"codec-{seed}", Entry("vq-vae", (), ""), random=True, seed=seed, options={"sizes": SIZES})
        write_bundle(replace(family.build(request), checks=()), folder / str(seed))
    return [Bundle.open(folder / str(seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def data() -> Calibration:
    return replace(synthetic(), held_out=synthetic().held_out[:3])


def test_fp32_loses_nothing_against_itself(bundles: list[Bundle], data: Calibration) -> None:
    (metric,) = metrics_of(bundles[0].manifest).values()
    expected = metric.observe(bundles[0], TrialSessions(bundles[0]), data, None)
    again = metric.observe(bundles[0], TrialSessions(bundles[0]), data, expected)
    lines = {line.stage: line for line in metric.compare(expected, again, data, LIMITS)}
    assert set(lines) == {"gate, codec", "gate, pictures"}
    assert lines["gate, codec"].value == 0
    assert "100.0% of the codes alike" in lines["gate, codec"].note
    assert all(line.passed for line in lines.values())


def test_another_detokenizer_is_refused(bundles: list[Bundle], data: Calibration) -> None:
    """Its pictures are others, though the codes are the same."""
    (metric,) = metrics_of(bundles[0].manifest).values()
    expected = metric.observe(bundles[0], TrialSessions(bundles[0]), data, None)
    role = "image_detokenizer"
    trial = TrialSessions(bundles[0], {role: bundles[1].graph(role)})
    found = metric.observe(bundles[0], trial, data, expected)
    for ours, theirs in zip(found.codes, expected.codes):
        np.testing.assert_array_equal(ours, theirs)
    lines = {line.stage: line for line in metric.compare(expected, found, data, LIMITS)}
    assert not lines["gate, pictures"].passed
    assert lines["gate, codec"].value != 0


def test_codecs_that_only_paint_are_judged_by_their_pictures(bundles: list[Bundle], data: Calibration) -> None:
    described = bundles[0].manifest
    assert described.codec is not None
    painter = Bundle(bundles[0].path, replace(described, codec=replace(described.codec, tokenizer="")))
    (metric,) = metrics_of(painter.manifest).values()
    expected = metric.observe(painter, TrialSessions(painter), data, None)
    (line,) = metric.compare(expected, expected, data, LIMITS)
    assert line.stage == "gate, pictures"
    assert line.value == pytest.approx(100)
