"""Small captioners of every kind of attention through the exporter, and their bundles through the runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vlrt.bundle import Bundle
from vlrt.errors import UsageError
from vlrt.manifest import Source
from vlrt.tasks.caption import Captioner as CaptionTask
from vlrt_export.bundle_writer import write_bundle
from vlrt_export.caption_quality import measure_quality, quality_checks
from vlrt_export.captioner import Captioner, Words, forbid, seeded, word_level
from vlrt_export.captioner_checks import captioner_checks
from vlrt_export.captioner_graphs import (
    AttentiveDecoder,
    attentive_step_graph,
    bundle_files,
    decode_spec,
    encoder_graph,
    memory_graph,
    text_spec,
)
from vlrt_export.graph import Plan
from vlrt_export.image_encoders import imagenet_image, randomise
from vlrt_export.modules.show_attend_tell import ShowAttendTell, ShowAttendTellSizes
from vlrt_export.modules.vgg import VGG
from vlrt_export.parity import ParityError

VOCABULARY = 30
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
SIZES = ShowAttendTellSizes(regions=512, annotation=24, hidden=32, embedding=16, attention=12, vocabulary=VOCABULARY)


def _encoder() -> nn.Module:
    encoder = VGG("vgg16")
    randomise(encoder, torch.randn(1, 3, 64, 64))
    return encoder


def _decoder(attention: str) -> ShowAttendTell:
    model = ShowAttendTell(SIZES, attention)
    # Sharp attention and words apart, so that rows and pictures differ in what they say.
    nn.init.normal_(model.attention.score.weight, std=4.0)
    nn.init.normal_(model.init_hidden.weight, std=1.0)
    nn.init.normal_(model.embedding.weight, std=1.0)
    forbid(model.output.bias, (0, 1, 3))
    return model


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return seeded(0, _encoder)


def _captioner(encoder: nn.Module, attention: str) -> Captioner:
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *(f"word{i}" for i in range(4, VOCABULARY))))}
    return Captioner(
        encoder=encoder,
        decoder=seeded(3, lambda: _decoder(attention)),
        image=imagenet_image(64),
        grid=(4, 4),
        region_channels=512,
        words=Words(word_level(vocabulary, "<unk>", SPECIAL), VOCABULARY, 0, 1, 2),
        max_new_tokens=12,
        source=Source(attention, "seed 3", "none"),
        defaults={"num_beams": 3, "length_penalty": 0.7, "early_stopping": True, "max_new_tokens": 12},
    )


def _plan(captioner: Captioner, decoder: AttentiveDecoder) -> Plan:
    return Plan(
        name="small",
        family="show-attend-tell",
        tasks=("caption",),
        graphs=[
            encoder_graph(captioner, 1e-4),
            memory_graph(captioner, decoder, 1e-4),
            attentive_step_graph(captioner, decoder, 1e-4),
        ],
        source=captioner.source,
        image=captioner.image,
        text=text_spec(captioner),
        decode=decode_spec(captioner),
        files=bundle_files(captioner),
        checks=captioner_checks(captioner, 1e-3),
    )


@pytest.fixture(scope="module", params=["soft", "hard", "hard-sampled"])
def bundle(request: Any, encoder: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    captioner = _captioner(encoder, request.param)
    assert isinstance(captioner.decoder, ShowAttendTell)
    target = tmp_path_factory.mktemp("bundles") / request.param
    write_bundle(_plan(captioner, captioner.decoder), target)
    return Bundle.open(target)


def _mode(bundle: Bundle) -> str:
    return bundle.manifest.source.origin


def test_every_rung_is_in_the_certificate(bundle: Bundle) -> None:
    stages = {line.stage for line in bundle.manifest.certificate}
    assert {"pixels", "image_encoder.regions", "caption_memory.hidden", "caption_step.attention"} <= stages
    # What is drawn cannot be compared word by word: there the step graph's own rung stands for it.
    searched = {"captions, greedy", "captions, 3 beams", "captions, 20 beams, classic"}
    assert stages & searched == (set() if _mode(bundle) == "hard-sampled" else searched)


def test_captions_come_with_where_the_model_looked(bundle: Bundle, photograph: Any) -> None:
    task = CaptionTask(bundle)
    for beams in (1, 4):
        found = task(photograph(90, 60, seed=beams), num_beams=beams)
        assert found.attention is not None
        assert found.attention.shape == (len(found.words), 4, 4)
        np.testing.assert_allclose(found.attention.sum((1, 2)), 1, atol=1e-5)
        if _mode(bundle) == "soft":
            assert found.attention.max() < 1
        else:
            assert set(np.unique(found.attention)) == {0.0, 1.0}


@pytest.mark.parametrize("bundle", ["soft", "hard"], indirect=True)
def test_a_batch_captions_as_one_by_one(bundle: Bundle, photograph: Any) -> None:
    task = CaptionTask(bundle)
    pictures = [photograph(80, 50 + seed, seed=seed) for seed in range(3)]
    together = task.batch(pictures, num_beams=3)
    assert [found.tokens for found in together] == [task(picture, num_beams=3).tokens for picture in pictures]


@pytest.mark.parametrize("bundle", ["hard-sampled"], indirect=True)
def test_the_seed_decides_where_sampled_attention_looks(bundle: Bundle, photograph: Any) -> None:
    task = CaptionTask(bundle)
    picture = photograph(90, 60)
    looked = [task(picture, num_beams=1, seed=seed).attention for seed in (*range(12), 0)]
    assert all(maps is not None and len(maps) for maps in looked)
    np.testing.assert_array_equal(looked[0], looked[-1])
    assert len({maps[0].argmax() for maps in looked if maps is not None}) > 1


def test_a_bundle_that_captions_otherwise_than_the_reference_is_not_written(encoder: nn.Module, tmp_path: Path) -> None:
    captioner = _captioner(encoder, "soft")
    assert isinstance(captioner.decoder, ShowAttendTell)
    other = seeded(4, lambda: _decoder("soft"))
    plan = replace(
        _plan(captioner, captioner.decoder), checks=captioner_checks(replace(captioner, decoder=other), 1e-3)
    )
    with pytest.raises(ParityError, match="captions, greedy"):
        write_bundle(plan, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def corpus(bundle: Bundle, photograph: Any, tmp_path: Path) -> Path:
    """Photographs of which two in three have what the bundle says as their reference, the others something else."""
    (tmp_path / "images").mkdir()
    lines = []
    for seed in range(9):
        picture = photograph(80, 50 + seed, seed=seed)
        picture.save(tmp_path / "images" / f"{seed}.png")
        said = CaptionTask(bundle)(picture).text if seed % 3 else "nothing of the kind is here"
        lines.append({"image": f"{seed}.png", "captions": [said]})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    return tmp_path


@pytest.mark.parametrize("bundle", ["soft"], indirect=True)
def test_quality_admits_what_captions_as_torch_does(bundle: Bundle, corpus: Path, encoder: nn.Module) -> None:
    found = list(measure_quality(_captioner(encoder, "soft"), bundle.path, corpus))
    assert [line.metric for line in found] == ["BLEU-4", "CIDEr-D"]
    assert all(line.passed and line.value > line.limit > 0 for line in found), found
    assert found[0].value < 100


@pytest.mark.parametrize("bundle", ["soft"], indirect=True)
def test_quality_refuses_what_captions_worse(bundle: Bundle, corpus: Path, encoder: nn.Module) -> None:
    # References that the torch modules meet and the bundle, traced from other weights, does not.
    better = replace(_captioner(encoder, "soft"), decoder=seeded(4, lambda: _decoder("soft")))
    target = corpus / "better"
    assert isinstance(better.decoder, ShowAttendTell)
    write_bundle(replace(_plan(better, better.decoder), checks=()), target)
    names = [f"{seed}.png" for seed in range(9)]
    said = CaptionTask(Bundle.open(target)).batch([corpus / "images" / name for name in names])
    lines = [{"image": name, "captions": [caption.text]} for name, caption in zip(names, said)]
    lines[0]["captions"] = ["nothing of the kind is here"]
    (corpus / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    assert not any(line.passed for line in measure_quality(better, bundle.path, corpus))


def test_quality_needs_photographs_with_captions(encoder: nn.Module, tmp_path: Path) -> None:
    captioner = _captioner(encoder, "soft")
    assert quality_checks(captioner, None) == []
    with pytest.raises(UsageError, match=r"captions\.jsonl. does not exist"):
        quality_checks(captioner, tmp_path)
    (tmp_path / "captions.jsonl").write_text("{}", "utf-8")
    with pytest.raises(UsageError, match="holds other lines"):
        quality_checks(captioner, tmp_path)
