"""The manifest round-trips, and each thing that it must refuse is refused with a message of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vlrt import manifest, record
from vlrt.errors import BundleError
from vlrt.manifest import (
    EmbedSpec,
    FileRecord,
    ImageSpec,
    Manifest,
    Measurement,
    StateSpec,
    TensorSpec,
    TextSpec,
)

Change = Callable[[dict[str, Any]], Any]
HASH = "0" * 64


@pytest.fixture(scope="session")
def whole(tiny_bundle_folder: Path) -> Manifest:
    return manifest.parse((tiny_bundle_folder / "manifest.json").read_bytes())


@pytest.fixture
def value(whole: Manifest) -> dict[str, Any]:
    return copy.deepcopy(json.loads(manifest.dump(whole)))


def test_round_trip(whole: Manifest) -> None:
    certificate = (
        Measurement("s", "m", 0.5, 1.0, "torch", "2", "n"),
        Measurement("t", "m", 2, 1, "r", "1", "", "higher"),
    )
    full = replace(whole, certificate=certificate, extra={"a": [1, {"b": None}]}, card="größe\nzwei Zeilen")
    text = manifest.dump(full)
    assert manifest.parse(text) == full
    assert manifest.parse(text.encode()) == full
    assert text.endswith("}\n")
    assert "größe" in text


def test_a_manifest_without_sections_is_enough(whole: Manifest) -> None:
    bare = Manifest(manifest.SCHEMA, "n", "f", (), whole.source, {}, {})
    assert manifest.parse(manifest.dump(bare)) == bare


@pytest.mark.parametrize(
    ("schema", "shown", "hint"),
    [
        (2, "2", "newer vlrt"),
        (0, "0", "again"),
        ("1", "'1'", "again"),
        (None, "None", "again"),
        ([1], "'something else'", "again"),
        (10**30, "'something else'", "newer"),
    ],
)
def test_another_schema_names_both_versions(value: dict[str, Any], schema: Any, shown: str, hint: str) -> None:
    with pytest.raises(BundleError) as caught:
        manifest.parse(json.dumps(value | {"schema": schema}), "x/manifest.json")
    assert (
        caught.value.what == f"`x/manifest.json` has schema version {shown}, this vlrt reads version {manifest.SCHEMA}"
    )
    assert hint in caught.value.hint


def test_the_schema_is_looked_at_before_anything_else() -> None:
    with pytest.raises(BundleError, match="schema version 7"):
        manifest.parse('{"schema": 7, "from": "the future"}')


@pytest.mark.parametrize("schema", [True, 1.0])
def test_a_version_that_only_compares_equal_is_refused(value: dict[str, Any], schema: Any) -> None:
    with pytest.raises(BundleError, match=r"manifest\.schema"):
        manifest.parse(json.dumps(value | {"schema": schema}))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]x", "\x00", '{"schema": 1, "schema": 1}', '{"a": NaN}', '{"a": -Infinity}', "[" * 100_000],
)
def test_text_that_is_not_json(text: str) -> None:
    with pytest.raises(BundleError, match="`manifest` is not JSON"):
        manifest.parse(text)


@pytest.mark.parametrize("text", [b"\xff\xfe", '{"schema": 1}'.encode("utf-16"), b'{"name": "\xe9"}'])
def test_bytes_that_are_not_utf8(text: bytes) -> None:
    with pytest.raises(BundleError, match="`manifest` is not JSON"):
        manifest.parse(text)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "true"])
def test_json_that_is_no_object(text: str) -> None:
    with pytest.raises(BundleError, match="schema version None"):
        manifest.parse(text)


def _place(value: Any, path: str) -> tuple[Any, Any]:
    """What holds the value at a dotted path, and its key there; numbers index lists."""
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        value = value[part]
    return value, last


def _set(path: str, new: Any) -> Change:
    def change(value: dict[str, Any]) -> None:
        place, key = _place(value, path)
        place[key] = new

    return change


def _drop(path: str) -> Change:
    def change(value: dict[str, Any]) -> None:
        place, key = _place(value, path)
        del place[key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("more", 1), "`manifest` has the unknown key 'more'"),
        (_set("image.colour", "RGB"), "`manifest.image` has the unknown key 'colour'"),
        (_drop("name"), "`manifest` lacks `name`"),
        (_drop("source.license"), "`manifest.source` lacks `license`"),
        (_set("tasks", "caption"), "`manifest.tasks` is 'caption', expected a list"),
        (_set("files", {"x": None}), "`manifest.files.x` is None, expected an object"),
        (_set("graphs.image_encoder.inputs.0.shape.1", 1 << 40), "absurd shape"),
        (_set("graphs.image_encoder.inputs.0.shape", [1 << 20, 1 << 20]), "absurd shape"),
        (_set("graphs.image_encoder.inputs.0.shape.1", 0), "absurd shape"),
        (_set("graphs.image_encoder.inputs.0.shape.1", -3), "absurd shape"),
        (_set("graphs.image_encoder.inputs.0.shape.0", ""), "without size or name"),
        (_set("graphs.image_encoder.inputs.0.dtype", "object"), "dtype `object`, expected one of float32"),
        (_set("graphs.image_encoder.file", "other.onnx"), "graph `image_encoder` names `other.onnx`"),
        (_set("graphs.image_encoder.external", ["w.bin"]), "graph `image_encoder` names `w.bin`"),
        (_set("goldens", "gone.json"), "the manifest names `gone.json`"),
        (_set("text.tokenizer", "gone.json"), "the text section names `gone.json`"),
        (_set("text.tokenizer", ""), "the text section names ``"),
        (_set("image.size", [8, 0]), "outside 1 to 8192"),
        (_set("image.size", [8, 9000]), "outside 1 to 8192"),
        (_set("image.std", [1.0, 0.0, 1.0]), "must not be zero"),
        (_set("image.resize", "shortest_edge"), "shortest edge 0 is smaller than the crop"),
        (_set("image.resize", "crop"), "expected one of 'stretch', 'shortest_edge'"),
        (_set("text.context", 0), "special ids"),
        (_set("text.context", 2), "leaves no room for words"),
        (_set("text.end_id", 999), "must lie in a vocabulary of 15"),
        (_set("text.pad_id", -1), "must lie in a vocabulary of 15"),
        (_set("decode.start_ids", [15]), "must lie in a vocabulary of 15"),
        (_set("decode.vocabulary", 0), "must lie in a vocabulary of 0"),
        (_set("decode.start_ids", []), "needs a chain, a start id"),
        (_set("decode.chain", []), "needs a chain, a start id"),
        (_set("decode.max_length", 0), "a sensible max_length"),
        (_set("decode.max_length", 1 << 40), "a sensible max_length"),
        (_set("decode.step", "nothing"), "decode section names the graph `nothing`"),
        (_set("decode.chain", ["image_encoder", "nothing"]), "decode section names the graph `nothing`"),
        (_set("decode.chain", ["caption_memory"]), "input `regions` of the graph `caption_memory` comes from nowhere"),
        (_set("decode.token", "word"), "`word` is not an input of `caption_step.onnx`"),
        (_set("decode.logits", "scores"), "`scores` is not an output of `caption_step.onnx`"),
        (_set("graphs.caption_step.outputs.0.shape", ["rows", 16]), "expected a vocabulary of 15"),
        (_set("graphs.caption_step.outputs.0.shape", []), "expected a vocabulary of 15"),
        (_set("decode.states.0.kind", "magic"), "expected one of 'recurrent'"),
        (_set("decode.states.0.input", "cell"), "`cell` is not an input"),
        (_set("decode.states.0.output", "cell"), "`cell` is not an output"),
        (_drop("decode.states.0.output"), "`` is not an output"),
        (_set("decode.states.0.initial", "cell"), "starts from `cell`, which no graph of the chain gives"),
        (_set("decode.states.0.input", "memory"), "named twice"),
        (_set("decode.records.0.output", "gaze"), "`gaze` is not an output"),
        (_set("decode.records.0.grid", [5, 4]), "expected a grid of [5, 4], together 20"),
        (_set("embed.image", ["nothing"]), "embed section names the graph `nothing`"),
        (_set("embed.image", []), "needs image and text graphs"),
        (_set("embed.image", ["image_embedding"]), "comes from nowhere"),
        (_set("embed.text_output", "vector"), "`vector` is not an output"),
        (_set("embed.dimension", 9), "expected the dimension 9"),
        (_set("embed.dimension", 0), "a sensible dimension"),
        (_set("embed.scale", 0), "a positive scale"),
        (_set("embed.learned_context", ["one"]), "two inputs"),
        (_set("certificate", [{"stage": "s"}]), "`manifest.certificate[0]` lacks `metric`"),
    ],
)
def test_refusals(value: dict[str, Any], change: Change, message: str) -> None:
    manifest.parse(json.dumps(value))
    change(value)
    with pytest.raises(BundleError) as caught:
        manifest.parse(json.dumps(value))
    assert message in caught.value.what
    assert caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "C:x", "~x", ".hidden", "-x", "a b", "a\nb", "x\n"),
        *("\u2024\u2024/x", "x\u2044y", "ｘ", "a\x00b", "x" * 122, "manifest.json", "file:x", "%2e%2e"),
    ],
)
def test_names_of_files_are_plain(value: dict[str, Any], name: str) -> None:
    value["files"][name] = {"bytes": 1, "sha256": HASH}
    with pytest.raises(BundleError, match=r"is not a plain file name|expected plain text"):
        manifest.parse(json.dumps(value))


@pytest.mark.parametrize(
    ("size", "digest"), [(-1, HASH), (1, "0" * 63), (1, "g" * 64), (1, HASH + "\n"), (1, "A" * 64)]
)
def test_file_records(size: int, digest: str) -> None:
    with pytest.raises(BundleError, match="64 hexadecimal digits"):
        FileRecord(size, digest)


def test_two_tensors_of_one_name(value: dict[str, Any]) -> None:
    value["graphs"]["image_encoder"]["inputs"] *= 2
    with pytest.raises(BundleError, match=r"`image_encoder\.onnx` has two inputs of one name"):
        manifest.parse(json.dumps(value))


def test_shapes_that_are_large_but_honest() -> None:
    assert TensorSpec("logits", "float32", ("rows", 1 << 24)).shape == ("rows", 1 << 24)
    assert TensorSpec("scalar", "float32", ()).shape == ()


def test_the_state_starts_from_its_own_name_unless_told_otherwise() -> None:
    assert StateSpec("recurrent", "h", "h_next").source == "h"
    assert StateSpec("recurrent", "h", "h_next", "h0").source == "h0"


def test_sections_check_themselves_also_when_made_in_code() -> None:
    with pytest.raises(BundleError):
        ImageSpec((0, 1), (0, 0, 0), (1, 1, 1))
    with pytest.raises(BundleError):
        TextSpec("t", 8, 4, pad_id=4)
    with pytest.raises(BundleError):
        EmbedSpec(("a",), ("b",), 4, float("nan"))


def test_measurements_pass_on_the_right_side_of_their_limit() -> None:
    assert Measurement("s", "error", 1.0, 1.0, "r", "").passed
    assert not Measurement("s", "error", 1.1, 1.0, "r", "").passed
    assert Measurement("s", "BLEU", 1.0, 1.0, "r", "", better="higher").passed
    assert not Measurement("s", "BLEU", 0.9, 1.0, "r", "", better="higher").passed
    assert not Measurement("s", "error", float("nan"), 1.0, "r", "").passed


def test_the_written_form_is_stable(tiny: ModuleType, whole: Manifest) -> None:
    """Equal manifests are equal bytes, so that a bundle's hash means something."""
    assert manifest.dump(whole) == manifest.dump(manifest.parse(manifest.dump(whole)))
    assert list(record.write(whole))[:3] == ["schema", "name", "family"]


def test_a_stretched_image_must_hold_its_crop() -> None:
    mean = (0.5, 0.5, 0.5)
    assert ImageSpec((8, 8), mean, mean, stretched=(9, 10)).stretched == (9, 10)
    for more in ({"stretched": (7, 9)}, {"stretched": (9, 9), "resize": "shortest_edge", "shortest_edge": 8}):
        with pytest.raises(BundleError, match="does not hold the crop"):
            ImageSpec((8, 8), mean, mean, **more)  # type: ignore[arg-type]


ANSWERS = {"question": "prompt", "template": "Question: {} Answer:"}


def test_an_answer_section_round_trips(value: dict[str, Any]) -> None:
    value["answer"] = ANSWERS
    found = manifest.parse(json.dumps(value))
    assert found.answer == manifest.AnswerSpec("prompt", "Question: {} Answer:")
    assert manifest.parse(manifest.dump(found)) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(answer=ANSWERS | {"template": "no place"}), "needs `{}` once"),
        (lambda v: v.update(answer=ANSWERS | {"template": "{} {}"}), "needs `{}` once"),
        (lambda v: v.update(answer=ANSWERS | {"question": "guess"}), "question"),
        (lambda v: (v.update(answer=ANSWERS), v.pop("decode")), "needs image, text and decode sections"),
        (
            lambda v: v.update(instruction=v["text"] | {"tokenizer": "gone.json"}),
            "the instruction section names `gone.json`",
        ),
        (lambda v: v.update(match={"image": [], "graph": "text_encoder"}), "needs the graphs that encode an image"),
        (lambda v: v.update(match={"image": ["image_encoder"], "graph": "judge"}), "`judge`, which the bundle lacks"),
        (
            lambda v: v.update(match={"image": ["image_encoder"], "graph": "text_encoder", "output": "text_embedding"}),
            "expected one number a sentence",
        ),
        (
            lambda v: v.update(match={"image": ["image_encoder"], "graph": "caption_step", "output": "logits"}),
            "comes from nowhere",
        ),
    ],
)
def test_answers_and_matches_that_are_refused(value: dict[str, Any], change: Change, message: str) -> None:
    change(value)
    with pytest.raises(BundleError, match=message):
        manifest.parse(json.dumps(value))
