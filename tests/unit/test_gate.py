"""The gate: what it admits and certifies, and what it refuses and by how much; on a tiny bundle without torch."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from vlrt import zoo
from vlrt.bundle import Bundle
from vlrt.engines import EngineOptions, Sessions
from vlrt.engines.onnxruntime import OnnxRuntimeSession
from vlrt.errors import UsageError, VlrtError
from vlrt.manifest import GraphSpec, TensorSpec
from vlrt.tasks.caption import Captioner
from vlrt.text import TextTruncatedWarning
from vlrt.verify import verify
from vlrt_export import gate, products
from vlrt_export.bundle_writer import reduce_bundle
from vlrt_export.calibration import Calibration, read_calibration, synthetic
from vlrt_export.gate import GateError, Wish
from vlrt_export.gate_captions import Choice, Decoding, Spoken, agreement
from vlrt_export.gate_embeddings import retrieval_agreement
from vlrt_export.gate_parts import relative_error, sensitive_parts
from vlrt_export.gate_speed import Speed, alternate, measure_speed
from vlrt_export.metrics import score_captions
from vlrt_export.reduced_graph import INT8, Workshop
from vlrt_export.trial import TrialSessions

LIMITS = zoo.zoo().gate | {"token_agreement": 0.3, "retrieval_agreement": 0.5, "cosine": 0.95}
"""Random weights as wide as the tiny bundle's amplify every rounding."""

TWICE = Speed(2.0, 1.0, 0.1, 15)


@pytest.fixture(scope="module")
def wide(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, its matrices wide enough to reduce."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CHANNELS", "HIDDEN", "ANNOTATION", "EMBEDDING", "DIMENSION"):
            patch.setattr(tiny, name, 64)
        tiny.write_bundle(folder)
    return folder


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of a few microseconds are no faster in int8; what the gate does with faster ones is the question."""
    monkeypatch.setattr(gate, "measure_speed", lambda fp32, reduced, calls: [TWICE] * len(reduced))


def wish(precision: str = "int8", smaller: float = 0.0, **limits: float) -> Wish:
    return Wish(precision, few(), LIMITS | limits, smaller)


def few() -> Calibration:
    return replace(synthetic(), seen=synthetic().seen[:3], held_out=synthetic().held_out[:3])


def lines(bundle: Bundle) -> dict[tuple[str, str], float]:
    return {(m.stage, m.metric): m.value for m in bundle.manifest.certificate}


@pytest.mark.parametrize(("precision", "kernels"), [("int8", "0"), ("int8", "always"), ("auto", "1")])
@pytest.mark.usefixtures("fast")
def test_a_reduced_bundle_carries_its_figures(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, kernels: str
) -> None:
    monkeypatch.setenv("VLRT_KERNELS", kernels)
    told: list[str] = []
    reduce_bundle(Bundle.open(wide), tmp_path / "reduced", wish(precision), progress=told.append)
    bundle = Bundle.open(tmp_path / "reduced")
    described = bundle.manifest
    assert described.name == "reduced"
    assert {role for role, graph in described.graphs.items() if graph.precision == "int8"} >= {"caption_step"}
    assert described.graphs["image_encoder"].precision == "fp32", "its only convolution sees the pixels"
    found = lines(bundle)
    assert found["gate, caption_step", "times as fast as fp32"] == 2
    assert found["gate, caption_step", "reduced kernels in the profile"] >= 3
    assert 0.3 <= found["gate, decoder", "share of tokens chosen alike"] <= 1
    assert 0.95 < found["gate, images", "least cosine with fp32"] < 1, "an int8 graph that equals fp32 ran fp32"
    assert all(measured.passed for measured in described.certificate)
    assert list(bundle.problems()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reduced"]
    assert all(measured.passed for measured in verify(bundle))
    assert "comparing with fp32" in told


@pytest.mark.usefixtures("fast")
def test_goldens_are_those_of_the_reduced_graphs(wide: Path, tmp_path: Path, photograph: Callable[..., Any]) -> None:
    reduce_bundle(Bundle.open(wide), tmp_path / "reduced", wish())
    measured = {m.stage: m for m in verify(Bundle.open(tmp_path / "reduced"))}
    assert measured["image.memory"].value < 1e-3, "the same machine rounds alike"
    assert measured["image.memory"].limit > measured["pixels"].limit
    plain, reduced = (Captioner(Bundle.open(path))(photograph()) for path in (wide, tmp_path / "reduced"))
    assert plain.tokens
    assert reduced.score == pytest.approx(plain.score, abs=0.5)
    assert reduced.score != plain.score


@pytest.mark.usefixtures("fast")
def test_a_task_that_suffers_is_refused_with_its_figures(wide: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(
        GateError, match=r"`int8` is not admitted: images: least cosine with fp32 is [01][.0-9]*, the limit 2"
    ) as e:
        reduce_bundle(Bundle.open(wide), tmp_path / "out", wish(cosine=2.0), progress=told.append)
    assert "--precision" in e.value.hint
    assert "finding the parts that reduced precision hurts most" in told
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_faster_is_refused_by_how_much(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "measure_speed", lambda fp32, reduced, calls: [Speed(1, 1, 0, 15)] * len(reduced))
    with pytest.raises(GateError, match=r"at best 1\.00 times fp32's speed .*expected at least 1\.05") as caught:
        reduce_bundle(Bundle.open(wide), tmp_path / "out", wish())
    assert "--smaller" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_is_smaller_is_admitted_by_its_factor(wide: Path, tmp_path: Path) -> None:
    """Measured for real: the speed is written down, and decides nothing."""
    reduce_bundle(Bundle.open(wide), tmp_path / "int8", wish(smaller=1.5))
    bundle = Bundle.open(tmp_path / "int8")
    assert lines(bundle)["gate, size", "times smaller than fp32"] >= 1.5
    assert ("gate, caption_step", "times as fast as fp32") in lines(bundle)
    assert bundle.size < Bundle.open(wide).size / 1.4
    with pytest.raises(GateError, match=r"times smaller than fp32 is [23]\.\d+, the limit 8"):
        reduce_bundle(Bundle.open(wide), tmp_path / "out", wish(smaller=8))


def test_halves_are_storage(wide: Path, tmp_path: Path) -> None:
    reduce_bundle(Bundle.open(wide), tmp_path / "fp16", wish("fp16", smaller=1.3))
    graph = Bundle.open(tmp_path / "fp16").manifest.graphs["caption_step"]
    assert (graph.precision, graph.storage) == ("fp32", "fp16")


@pytest.mark.usefixtures("fast")
def test_kernels_that_did_not_run_are_refused(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "executed_kernels", lambda written, call: Counter({"MatMul": 5}))
    with pytest.raises(GateError, match="reduced kernels in the profile is 0, the limit"):
        reduce_bundle(Bundle.open(wide), tmp_path / "out", wish())


def test_auto_falls_back_from_four_bits_to_eight(wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four bits are the fastest here, and cost more than the limit between what they and eight bits cost."""

    def speeds(fp32: Any, reduced: list[Any], calls: Any) -> list[Speed]:
        return [Speed(4, 1, 0, 15) if written[0].precision == "int4" else TWICE for written in reduced]

    monkeypatch.setattr(gate, "measure_speed", speeds)
    reduce_bundle(Bundle.open(wide), tmp_path / "loose", wish("auto", cosine=-1, token_agreement=0))
    reduce_bundle(Bundle.open(wide), tmp_path / "tight", wish("auto", cosine=0.998, token_agreement=0))
    loose, tight = (Bundle.open(tmp_path / name) for name in ("loose", "tight"))
    assert loose.manifest.graphs["image_embedding"].precision == "int4"
    assert lines(loose)["gate, images", "least cosine with fp32"] < 0.998
    assert tight.manifest.graphs["image_embedding"].precision == "int8"


@pytest.mark.usefixtures("fast")
def test_a_bundle_with_nothing_to_reduce_says_so(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.write_bundle(tmp_path / "tiny")  # its matrices have fewer than a hundred elements
    with pytest.raises(GateError, match="`out` has nothing that `int4` could reduce"):
        reduce_bundle(Bundle.open(tmp_path / "tiny"), tmp_path / "out", wish("int4"))


@pytest.mark.usefixtures("fast")
def test_only_fp32_bundles_are_reduced(wide: Path, tmp_path: Path) -> None:
    reduce_bundle(Bundle.open(wide), tmp_path / "int8", wish())
    with pytest.raises(VlrtError, match="is not a bundle of ours in fp32"):
        reduce_bundle(Bundle.open(tmp_path / "int8"), tmp_path / "again", wish())


@pytest.mark.parametrize(
    ("precision", "smaller", "message"), [("int2", 0, "no reduced precision"), ("int8", 1, "above 1")]
)
def test_wishes_that_cannot_be_meant(precision: str, smaller: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        wish(precision, smaller)


def recorded(wide: Path) -> TrialSessions:
    bundle = Bundle.open(wide)
    sessions = TrialSessions(bundle, recorded=True)
    for metric in gate.metrics_of(bundle.manifest).values():
        metric.observe(bundle, sessions, replace(synthetic(), held_out=synthetic().seen[:2]), None)
    return sessions


def test_recorded_calls_can_be_made_again(wide: Path) -> None:
    sessions = recorded(wide)
    record = sessions.records["caption_step"]
    call = record.calls[0]
    assert call.outputs, "the loop binds its buffers"
    spec, path = Bundle.open(wide).graph("caption_step")
    again = call.ready(OnnxRuntimeSession(spec, path, EngineOptions()))
    expected = Sessions(Bundle.open(wide)).get("caption_step").run(**call.inputs)
    for _ in range(2):
        found = again()
        assert all(np.allclose(found[name], expected[name], atol=1e-6) for name in found)
    assert sum(count for _, count in record.by_shape()) == sum(record.counts.values())
    before = sum(record.counts.values())
    with sessions.unrecorded():
        sessions.get("caption_step").run(**call.inputs)
    assert sum(record.counts.values()) == before


def test_the_part_that_hurts_most_is_found(wide: Path, tmp_path: Path) -> None:
    sessions = recorded(wide)
    shop = Workshop("caption_step", Bundle.open(wide).graph("caption_step"), tmp_path / "shop", [])
    parts = shop.parts(INT8)
    ranked = sensitive_parts({"caption_step": (shop, INT8)}, sessions.records)
    assert sorted(name for _, name in ranked) == sorted(parts)
    calls = sessions.records["caption_step"].calls[:2]

    def error(kept: list[str]) -> float:
        made = shop.make(INT8, kept)
        pair = [OnnxRuntimeSession(*w, EngineOptions()) for w in ((shop.spec, shop.path), (made.spec, made.path))]
        expected, found = ([call.ready(session)() for call in calls] for session in pair)
        return relative_error(found, expected)

    assert error([ranked[0][1]]) < error([ranked[-1][1]])


def test_matrices_cut_out_of_larger_ones_are_reduced_too(tmp_path: Path) -> None:
    """As torch's own attention layers are traced, with all projections in one matrix; here stored as fp16."""
    random = np.random.default_rng(0)
    joined = random.standard_normal((128, 64)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["joined.fp16"], ["joined"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["joined"], ["first", "second"], num_outputs=2, axis=0),
        helper.make_node("Transpose", ["second"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
        helper.make_node("MatMul", ["y", "first"], ["z"]),
        helper.make_node("Mul", ["z", "kept"], ["out"]),
    ]
    kept = random.standard_normal((20, 64)).astype(np.float16).astype(np.float32)
    weights = [numpy_helper.from_array(joined, "joined.fp16"), numpy_helper.from_array(kept, "kept")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [20, 64]) for name in ("x", "out")]
    graph = helper.make_graph(nodes, "cut", values[:1], values[1:], weights)
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "cut.onnx"
    )
    tensors = [(TensorSpec(name, "float32", (20, 64)),) for name in ("x", "out")]
    spec = GraphSpec("cut.onnx", "fp32", tensors[0], tensors[1], storage="fp16")
    made = Workshop("cut", (spec, tmp_path / "cut.onnx"), tmp_path / "shop", []).make(INT8)
    assert made is not None
    assert made.kernels == {"DynamicQuantizeMatMul": 2}
    assert made.spec.storage == "fp16"
    types = {t.name: t.data_type for t in onnx.load(made.path).graph.initializer if np.prod(t.dims) > 1000}
    assert sorted(types.values()) == sorted([TensorProto.INT8, TensorProto.INT8, TensorProto.FLOAT16])


def test_both_sides_take_turns(wide: Path) -> None:
    turns: list[str] = []
    times = alternate([lambda: turns.append("a"), lambda: turns.append("b")])
    assert turns[:6] == list("ababab")
    assert len(times[0]) == len(times[1]) >= 5
    record = recorded(wide).records["text_encoder"]
    written = Bundle.open(wide).graph("text_encoder")
    (speed,) = measure_speed(written, [written], record.by_shape())
    assert speed.fp32 > 0
    assert speed.ratio == speed.fp32 / speed.reduced


def test_choices_below_the_noise_do_not_count() -> None:
    expected = np.array([[0.9, 0.1, 0.0], [0.5, 0.4999, 0.0]], np.float32)
    found = expected + np.array([[0.01, -0.01, 0.0], [-0.01, 0.01, 0.0]], np.float32)
    share, told = retrieval_agreement(found, expected)
    assert (share, told) == (1.0, 3), "one row and two columns are clear, and alike"
    assert retrieval_agreement(found[::-1], expected)[0] < 1
    assert score_captions({"a": "x"}, {"a": ["x"]}).bleu[0] == 100


def test_captions_are_scored_where_there_are_enough() -> None:
    said = [f"a dog runs on grass {i}" for i in range(120)]
    choices = [[Choice(1, 3.0)]]
    expected = Spoken(said, [[1]], choices)
    worse = Spoken(["a cat", *said[1:40], *(["no"] * 80)], [[1]], choices)
    many = replace(synthetic(), references=[[text] for text in said])
    found = {m.metric: m for m in Decoding().compare(expected, worse, many, LIMITS)}
    assert found["BLEU-4"].value < found["BLEU-4"].limit == pytest.approx(97)
    assert not found["CIDEr-D"].passed
    assert all(m.passed for m in Decoding().compare(expected, expected, many, LIMITS))
    few_of_them = replace(many, references=many.references[:50])
    (only,) = Decoding().compare(expected, worse, few_of_them, LIMITS)
    assert "not judged by fewer than 100" in only.note


def test_tokens_chosen_by_chance_do_not_count() -> None:
    expected = [[Choice(1, 3.0), Choice(2, 0.01), Choice(3, 0.5)]]
    assert agreement([[Choice(1, 0.0), Choice(9, 0.0), Choice(3, 0.0)]], expected) == (1.0, 2, 3)
    assert agreement([[Choice(1, 0.0), Choice(2, 0.0), Choice(9, 0.0)]], expected) == (0.5, 2, 3)
    assert agreement([[Choice(9, 0.0)]], [[Choice(2, 0.01)]]) == (1.0, 0, 1)


@pytest.fixture
def folder(tmp_path: Path, photograph: Callable[..., Image.Image]) -> Path:
    (tmp_path / "photos").mkdir()
    for seed in range(10):
        photograph(seed=seed).save(tmp_path / "photos" / f"{seed}.png")
    return tmp_path / "photos"


def test_photographs_are_halved_and_broken_ones_named(folder: Path) -> None:
    (folder / "5.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("none either", "utf-8")
    found = read_calibration(folder)
    assert (len(found.seen), len(found.held_out), found.skipped) == (5, 4, ["5.png"])
    assert found.origin == "9 photographs"
    assert np.array_equal(np.asarray(found.held_out[0]), np.asarray(Image.open(folder / "1.png")))
    assert found.for_ranges().held_out == found.seen[:32] or len(found.for_ranges().held_out) == 5


def test_captions_and_questions_come_along(folder: Path) -> None:
    rows = [f'{{"image": "{i}.png", "captions": ["a dog {i}", "dog"]}}' for i in range(10)]
    (folder / "captions.jsonl").write_text("\n".join(rows), "utf-8")
    (folder / "questions.txt").write_text("what is it?\n\nwhere is it?\n", "utf-8")
    found = read_calibration(folder)
    assert found.references[0] == ["a dog 1", "dog"]
    assert found.sentences[1] == "a dog 3"
    assert found.questions == ["what is it?", "where is it?"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: [p.unlink() for p in f.iterdir()], "holds 0 photographs, expected at least 8"),
        (lambda f: [(f / f"{i}.png").unlink() for i in range(4)], "holds 6 photographs, expected at least 8"),
        (lambda f: [(f / f"{i}.png").write_bytes(b"-") for i in range(4)], "holds 6 photographs, 4 broken ones not"),
        (lambda f: (f / "captions.jsonl").write_text("{", "utf-8"), "holds other lines than `image` and `captions`"),
        (
            lambda f: (f / "captions.jsonl").write_text('{"image": "1.png", "captions": []}', "utf-8"),
            "has a photograph without captions",
        ),
    ],
    ids=["empty", "few", "broken", "damaged captions", "no captions"],
)
def test_folders_that_cannot_judge(folder: Path, change: Callable[[Path], Any], message: str) -> None:
    change(folder)
    with pytest.raises(UsageError, match=message):
        read_calibration(folder)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        read_calibration(tmp_path / "none")


@pytest.mark.usefixtures("fast")
def test_painters_are_judged_by_their_pictures(
    latent_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_FEWEST", 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextTruncatedWarning)  # a tiny context cuts the sentences
        reduce_bundle(Bundle.open(latent_bundle), tmp_path / "reduced", wish(picture_psnr=10))
        reduced = Bundle.open(tmp_path / "reduced")
        found = lines(reduced)
        assert 10 < found["gate, painting", "least PSNR with fp32's"] < 99
        assert "int8" in {graph.precision for graph in reduced.manifest.graphs.values()}
        assert all(measured.passed for measured in verify(reduced))
        with pytest.raises(GateError, match=r"painting: least PSNR with fp32's is \d+\.\d+, the limit 100"):
            reduce_bundle(Bundle.open(latent_bundle), tmp_path / "out", wish(picture_psnr=100))
