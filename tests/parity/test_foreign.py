"""Folders that Optimum and transformers.js export, run as they are: tokens against transformers' `generate`.

The folders were made by `tests/golden/foreign.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image

from vlrt import foreign
from vlrt.bundle import Bundle
from vlrt.cli import root
from vlrt.decode import DecodeOptions, Hypothesis, StepModel, generate
from vlrt.engines import Sessions
from vlrt.errors import BundleError
from vlrt.image import preprocess
from vlrt.manifest import dump, parse
from vlrt.onnx_signature import signature
from vlrt.tasks.caption import Captioner
from vlrt.tasks.embed import Embedder
from vlrt.zoo import resolve

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CAPTIONERS = ("foreign_merged", "foreign_two_files", "foreign_trocr")
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1, "max_new_tokens": 10},
    "beam 3": {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 10},
    "beam 5": {"num_beams": 5, "num_return_sequences": 2, "max_new_tokens": 8, "length_penalty": 0.5},
}
WORDS = (17, 9)


def picture(seed: int) -> Image.Image:
    """As in `tests/golden/foreign.py`."""
    noise = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), np.uint8)
    return Image.fromarray(noise).resize((44, 36), Image.Resampling.BICUBIC)


PICTURES = [picture(seed) for seed in range(3)]


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / name / "golden.json").read_text("utf-8"))
    return found


def decode(folder: Path, prompts: Sequence[Sequence[int]], setting: dict[str, Any], **more: Any) -> Any:
    bundle = Bundle.open(folder)
    spec, image = bundle.manifest.decode, bundle.manifest.image
    assert spec is not None
    assert image is not None
    sessions = Sessions(bundle)
    initial = sessions.run_chain(spec.chain, {image.input: preprocess(PICTURES, image)})
    full = [[*spec.start_ids, *prompt] for prompt in prompts]
    return generate(StepModel.open(spec, sessions.get), initial, DecodeOptions(**setting), prompts=full, **more)


def check(found: list[list[Hypothesis]], expected: list[dict[str, Any]]) -> None:
    """Sequences and scores, image after image, best first."""
    flat = [hypothesis for image in found for hypothesis in image]
    assert [list(h.tokens) for h in flat] == [row["tokens"] for row in expected]
    for hypothesis, row in zip(flat, expected):
        if row["score"] is not None:
            assert hypothesis.score == pytest.approx(row["score"], abs=1e-4)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_are_those_of_transformers(name: str, setting: str) -> None:
    stored = golden(name)
    check(decode(GOLDEN / name, [()] * 3, SETTINGS[setting]), stored[setting])
    check(decode(GOLDEN / name, [WORDS] * 3, SETTINGS[setting]), stored[f"{setting}, prompt"])


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CAPTIONERS)
def test_prompts_may_differ_in_length(name: str, setting: str) -> None:
    each = SETTINGS[setting].get("num_return_sequences", 1)
    stored, mixed = golden(name), []
    for image, key in enumerate((f"{setting}, prompt", setting, f"{setting}, prompt")):
        mixed += stored[key][image * each : (image + 1) * each]
    check(decode(GOLDEN / name, [WORDS, (), WORDS], SETTINGS[setting]), mixed)


@pytest.mark.parametrize("name", CAPTIONERS)
def test_the_picture_decides_the_caption(name: str) -> None:
    assert len({tuple(row["tokens"]) for row in golden(name)["greedy"]}) > 1


@pytest.mark.parametrize("name", CAPTIONERS)
def test_pixels_are_those_of_the_library(name: str) -> None:
    image = Bundle.open(GOLDEN / name).manifest.image
    assert image is not None
    np.testing.assert_allclose(preprocess(PICTURES, image).ravel()[::97], golden(name)["pixels"], atol=2e-6)


@pytest.mark.parametrize("setting", ["greedy", "beam 3"])
def test_tokens_are_streamed_to_the_image_they_belong_to(setting: str) -> None:
    told: list[list[int]] = [[], [], []]
    found = decode(
        GOLDEN / "foreign_merged", [WORDS, (), WORDS], SETTINGS[setting], on_token=lambda i, t: told[i].append(t)
    )
    assert told == [list(image[0].tokens) for image in found]


def test_a_cancel_returns_what_is_there() -> None:
    asked = iter([False, False, True])
    found = decode(GOLDEN / "foreign_trocr", [()] * 3, SETTINGS["greedy"], should_cancel=lambda: next(asked, True))
    assert [len(image[0].tokens) for image in found] == [2, 2, 2]
    assert not any(image[0].finished for image in found)


def test_the_captioner_runs_the_folder_by_its_path() -> None:
    captioner = Captioner(resolve(GOLDEN / "foreign_merged", "caption"))
    found = captioner.batch(PICTURES, num_beams=3, num_return_sequences=3, max_new_tokens=10)
    assert [list(c.tokens) for c in found] == [row["tokens"] for row in golden("foreign_merged")["beam 3"][::3]]
    begun = captioner(PICTURES[1], prompt="w17 w9", max_new_tokens=10)
    assert list(begun.tokens) == golden("foreign_merged")["greedy, prompt"][1]["tokens"]
    assert begun.text.startswith("w17w9")


def test_the_layout_of_transformers_js_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "js"
    shutil.copytree(GOLDEN / "foreign_merged", folder)
    (folder / "onnx").mkdir()
    for path in folder.glob("*.onnx"):
        path.rename(folder / "onnx" / f"{path.stem}_quantized.onnx")
    described = Bundle.open(folder).manifest
    assert {graph.precision for graph in described.graphs.values()} == {"int8"}
    check(decode(folder, [()] * 3, SETTINGS["beam 3"]), golden("foreign_merged")["beam 3"])
    shutil.copy(GOLDEN / "foreign_merged" / "encoder_model.onnx", folder / "onnx")
    assert Bundle.open(folder).manifest.graphs["image_encoder"].precision == "fp32"


@pytest.mark.parametrize("name", ["foreign_clip", "foreign_clip_joint", "foreign_siglip"])
def test_clip_embeds_as_the_library_does(name: str) -> None:
    """As two towers, and as the one graph that Optimum makes of them, which wants both inputs."""
    stored, embedder = golden(name), Embedder(resolve(GOLDEN / name, "embed"))
    found = embedder(PICTURES, stored["sentences"])
    np.testing.assert_allclose(found.images, stored["image"], atol=1e-5)
    np.testing.assert_allclose(found.texts, stored["text"], atol=1e-5)
    pixels = preprocess(PICTURES, embedder.encoder.image_spec)
    np.testing.assert_allclose(pixels.ravel()[::97], stored["pixels"], atol=2e-6)


def test_a_bundle_is_marked_as_unverified_and_no_manifest_may_say_so() -> None:
    bundle = Bundle.open(GOLDEN / "foreign_merged")
    assert bundle.is_foreign
    assert bundle.manifest.source.revision == "unverified"
    with pytest.raises(BundleError, match="sha256"):
        parse(dump(bundle.manifest))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("foreign_*/**/*.onnx")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_signatures_are_those_that_the_onnx_library_reads(path: Path) -> None:
    body = onnx.load(path).graph
    for found, infos in zip(signature(path), (body.input, body.output)):
        assert [spec.name for spec in found] == [info.name for info in infos]
        for spec, info in zip(found, infos):
            kind = info.type.tensor_type
            assert spec.dtype == onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
            assert list(spec.shape) == [d.dim_value or d.dim_param for d in kind.shape.dim]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the two-file export that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "foreign_two_files", tmp_path / "copy"))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(BundleError, match=match):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name", ["decoder_with_past_model.onnx", "decoder_model.onnx", "preprocessor_config.json", "tokenizer.json"]
)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    refused(copy, f"lacks `{name}`")


@pytest.mark.parametrize("name", ["encoder_model.onnx", "tokenizer.json", "config.json"])
def test_links_are_refused(copy: Path, name: str) -> None:
    (copy / name).rename(copy.parent / name)
    os.symlink(copy.parent / name, copy / name)
    refused(copy, f"`{name}` is not a regular file")


def test_a_linked_subfolder_is_refused(copy: Path) -> None:
    elsewhere = copy.parent / "elsewhere"
    elsewhere.mkdir()
    for path in copy.glob("*.onnx"):
        path.rename(elsewhere / path.name)
    os.symlink(elsewhere, copy / "onnx")
    refused(copy, "`onnx` is a link")


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/b.bin"])
def test_external_data_outside_the_folder_is_refused(copy: Path, location: str) -> None:
    model = onnx.load(copy / "encoder_model.onnx")
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (copy / "encoder_model.onnx").write_bytes(model.SerializeToString())
    refused(copy, "would read")


def test_external_data_beside_the_graph_is_read(copy: Path) -> None:
    model = onnx.load(copy / "decoder_model.onnx")
    onnx.save_model(
        model, copy / "decoder_model.onnx", save_as_external_data=True, location="decoder_model.onnx_data",
        size_threshold=64,
    )  # fmt: skip
    assert Bundle.open(copy).manifest.graphs["decoder_prefill"].external == ("decoder_model.onnx_data",)
    check(decode(copy, [()] * 3, SETTINGS["greedy"]), golden("foreign_two_files")["greedy"])
    (copy / "decoder_model.onnx_data").unlink()
    refused(copy, "lacks `decoder_model.onnx_data`")


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("generation_config.json", {"eos_token_id": "x"}, "`eos_token_id` is 'x'"),
        ("generation_config.json", {"eos_token_id": 400}, "must lie in a vocabulary of 61"),
        ("preprocessor_config.json", {"do_normalize": False}, "switches off `do_normalize`"),
        ("preprocessor_config.json", {"do_pad": True}, "asks for `do_pad`"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 16}}, "leaves the other side open"),
        ("preprocessor_config.json", {"image_mean": 0.5}, "image_mean 0.5"),
        ("preprocessor_config.json", {"resample": 9}, "resampling 9"),
        ("preprocessor_config.json", {"resample": []}, "values of another kind"),
        ("generation_config.json", {"max_new_tokens": "many"}, "values of another kind"),
        ("config.json", {"model_type": "\x1b[2J"}, "expected a name"),
        ("config.json", {"decoder": {"model_type": "gpt2"}}, "how many positions"),
        ("config.json", {"decoder": {"n_positions": "many", "max_position_embeddings": -5}}, "sensible max_length"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(copy: Path, file: str, change: dict[str, Any], match: str) -> None:
    value = json.loads((copy / file).read_text("utf-8"))
    (copy / file).write_text(json.dumps(value | change), "utf-8")
    refused(copy, match)


def test_another_kind_of_model_is_named(copy: Path) -> None:
    for path in copy.glob("*.onnx"):
        path.unlink()
    shutil.copy(GOLDEN / "foreign_merged" / "decoder_model_merged.onnx", copy / "model.onnx")
    refused(copy, "`vision-encoder-decoder` model in graphs that this runtime does not serve")


def test_a_sound_encoder_is_refused(copy: Path) -> None:
    model = onnx.load(copy / "encoder_model.onnx")
    for node in model.graph.node:
        node.input[:] = ["input_features" if name == "pixel_values" else name for name in node.input]
    model.graph.input[0].name = "input_features"
    onnx.save_model(model, copy / "encoder_model.onnx")
    refused(copy, "takes `input_features`, expected `pixel_values`")


def test_the_commands_say_that_it_is_unverified() -> None:
    shown = CliRunner().invoke(root, ["inspect", str(GOLDEN / "foreign_merged")])
    assert shown.exit_code == 0
    assert "unverified" in shown.output
    verified = CliRunner().invoke(root, ["verify", str(GOLDEN / "foreign_merged")], standalone_mode=False)
    assert isinstance(verified.exception, BundleError)
    assert "others exported" in str(verified.exception)


def test_names_that_would_disturb_a_terminal_are_refused(copy: Path) -> None:
    model = onnx.load(copy / "encoder_model.onnx")
    model.graph.output[0].name = "\x1b[2Jlast_hidden_state"
    (copy / "encoder_model.onnx").write_bytes(model.SerializeToString())
    refused(copy, "control characters")


def test_a_folder_without_graphs_is_no_bundle(copy: Path) -> None:
    for path in copy.glob("*.onnx"):
        path.unlink()
    assert not foreign.recognises(copy)
    refused(copy, "has no manifest.json")


def test_damaged_graphs_are_refused_and_nothing_else_happens(copy: Path) -> None:
    path = copy / "encoder_model.onnx"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(120):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] = int(generator.integers(256))
        damaged = damaged[: int(generator.integers(1, len(whole)))] if generator.random() < 0.3 else damaged
        path.write_bytes(bytes(damaged))
        with contextlib.suppress(BundleError):  # any other exception fails the test; three bytes may also be harmless
            signature(path)


@pytest.fixture
def clip_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "foreign_clip", tmp_path / "clip"))


@pytest.mark.parametrize("name", ["foreign_clip", "foreign_clip_joint"])
def test_clip_searches_classifies_and_matches(name: str, photographs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / name, tmp_path / "clip")
    one = str(photographs / "a.jpg")
    for words in (
        ["search", "w5 w9", str(photographs)],
        ["classify", str(photographs), "--labels", "w5,w9"],
        ["match", one, "w5 w9", "w9", "--json"],
    ):
        done = CliRunner().invoke(root, ["run", *words, "--model", str(folder)])
        assert done.exit_code == 0, done.output
        assert "a.jpg" in done.output


def test_siglip_matches_but_chooses_no_label(photographs: Path) -> None:
    one, words = str(photographs / "a.jpg"), ["--model", str(GOLDEN / "foreign_siglip")]
    done = CliRunner().invoke(root, ["run", "match", one, "w5 w9", "w9", *words])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(root, ["run", "classify", one, "--labels", "w5,w9", *words])
    assert "does not serve `classify`" in str(done.exception)


def test_siglip_without_the_tokenizer_s_settings_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "foreign_siglip", tmp_path / "siglip"))
    settings = folder / "tokenizer_config.json"
    settings.write_text('{"pad_token": "<none>", "eos_token": {"content": "</s>"}}')
    refused(folder, "no id for the `pad_token`")
    settings.unlink()
    refused(folder, "lacks `tokenizer_config.json`")


def test_other_weights_are_another_identity(clip_copy: Path) -> None:
    before = Bundle.open(clip_copy)
    known = before.identity, before.digest("text_model.onnx")
    assert known[0] == Bundle.open(clip_copy).identity
    graph = clip_copy / "onnx" / "text_model.onnx"
    model = onnx.load(graph)
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.raw_data = bytes(len(weights.raw_data))
    onnx.save_model(model, graph)
    after = Bundle.open(clip_copy)
    assert after.identity != known[0]
    assert after.digest("text_model.onnx") != known[1]


def test_one_graph_with_other_inputs_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "foreign_clip_joint", tmp_path / "clip"))
    shutil.copy(GOLDEN / "foreign_clip" / "onnx" / "text_model.onnx", folder / "model.onnx")
    with pytest.raises(BundleError, match=r"`model.onnx` takes `input_ids`, expected `attention_mask` and"):
        Bundle.open(folder)
