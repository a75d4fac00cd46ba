"""The gate for codecs: reconstructions and pictures of a reduced graph against fp32's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt_export.calibration import Calibration, synthetic
from vlrt_export.gate_metrics import metrics_of
from vlrt_export.trial import TrialSessions

LIMITS = zoo.zoo().gate


@pytest.fixture(scope="module")
def bundle(small_codec: Path) -> Bundle:
    return Bundle.open(small_codec)


@pytest.fixture(scope="module")
def data() -> Calibration:
    return replace(synthetic(), held_out=synthetic().held_out[:3])


def test_fp32_loses_nothing_against_itself(bundle: Bundle, data: Calibration) -> None:
    (metric,) = metrics_of(bundle.manifest).values()
    expected = metric.observe(bundle, TrialSessions(bundle), data, None)
    again = metric.observe(bundle, TrialSessions(bundle), data, expected)
    lines = {line.stage: line for line in metric.compare(expected, again, data, LIMITS)}
    assert set(lines) == {"gate, codec", "gate, pictures"}
    assert lines["gate, codec"].value == 0
    assert "100.0% of the codes alike" in lines["gate, codec"].note
    assert all(line.passed for line in lines.values())


def test_another_detokenizer_is_refused(bundle: Bundle, data: Calibration, tmp_path: Path) -> None:
    """Its pictures are others, though the codes are the same."""
    (metric,) = metrics_of(bundle.manifest).values()
    expected = metric.observe(bundle, TrialSessions(bundle), data, None)
    spec, path = bundle.graph("image_detokenizer")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(4 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save_model(model, tmp_path / "other.onnx")
    trial = TrialSessions(bundle, {"image_detokenizer": (spec, tmp_path / "other.onnx")})
    found = metric.observe(bundle, trial, data, expected)
    for ours, theirs in zip(found.codes, expected.codes):
        np.testing.assert_array_equal(ours, theirs)
    lines = {line.stage: line for line in metric.compare(expected, found, data, LIMITS)}
    assert not lines["gate, pictures"].passed
    assert lines["gate, codec"].value != 0


def test_codecs_that_only_paint_are_judged_by_their_pictures(bundle: Bundle, data: Calibration) -> None:
    described = bundle.manifest
    assert described.codec is not None
    painter = Bundle(bundle.path, replace(described, codec=replace(described.codec, tokenizer="")))
    (metric,) = metrics_of(painter.manifest).values()
    expected = metric.observe(painter, TrialSessions(painter), data, None)
    (line,) = metric.compare(expected, expected, data, LIMITS)
    assert line.stage == "gate, pictures"
    assert line.value == pytest.approx(100)
