"""Bundles made to harm: each is refused with one line, and nothing of it is run or read beyond the folder."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vlrt import cli, manifest
from vlrt.bundle import Bundle
from vlrt.engines import Sessions
from vlrt.errors import BundleError, EngineError, VlrtError
from vlrt.onnx_files import external_files
from vlrt.tasks.caption import Captioner
from vlrt.text import TextCodec
from vlrt.verify import verify

Refused = Callable[..., None]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], photographs: Path) -> Refused:
    """Asserts that a bundle is refused with a message, in Python and at the command line."""

    def check(folder: Path, message: str) -> None:
        with pytest.raises(BundleError, match=message) as caught:
            Captioner(Bundle.open(folder))(photographs / "a.jpg")
        assert "\n" not in caught.value.what
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main(["run", "caption", str(photographs / "a.jpg"), "--model", str(folder)])
        printed = capsys.readouterr()
        assert exit_.value.code == 1
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert len(printed.err.splitlines()) <= 2
        assert "Traceback" not in printed.err

    return check


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


# --- paths


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "..", "sub\\secret", "", "\u2025/secret", "secret\x00.json"]
)
def test_names_that_lead_out(tiny_copy: Path, refused: Refused, name: str) -> None:
    (tiny_copy.parent / "secret").write_text("secret")

    def point_out(value: dict[str, Any]) -> None:
        value["files"][name] = value["files"].pop("tokenizer.json")
        value["text"]["tokenizer"] = name

    edit(tiny_copy, point_out)
    refused(tiny_copy, r"not a plain file name|plain text")


@pytest.mark.parametrize("name", ["tokenizer.json", "image_encoder.onnx", "manifest.json"])
def test_links(tiny_copy: Path, refused: Refused, name: str) -> None:
    """Also one to a file of the very content that was promised: it could change later."""
    outside = tiny_copy.parent / "outside"
    (tiny_copy / name).rename(outside)
    (tiny_copy / name).symlink_to(outside)
    refused(tiny_copy, rf"{name}` is not a regular file")


@pytest.mark.parametrize("name", ["tokenizer.json", "image_encoder.onnx", "manifest.json"])
def test_folders_and_pipes_in_place_of_files(tiny_copy: Path, refused: Refused, name: str) -> None:
    (tiny_copy / name).unlink()
    (tiny_copy / name).mkdir()
    refused(tiny_copy, rf"{name}` is not a regular file")
    (tiny_copy / name).rmdir()
    os.mkfifo(tiny_copy / name)
    refused(tiny_copy, rf"{name}` is not a regular file")


def test_links_in_a_circle(tiny_copy: Path, refused: Refused) -> None:
    (tiny_copy / "manifest.json").unlink()
    (tiny_copy / "manifest.json").symlink_to("manifest.json")
    refused(tiny_copy, "is not a regular file")


# --- manifests


def test_a_manifest_of_a_hundred_megabytes_is_not_read(tiny_copy: Path, refused: Refused) -> None:
    with open(tiny_copy / "manifest.json", "r+b") as stream:
        stream.truncate(100 << 20)
    refused(tiny_copy, "too many for a manifest")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"schema": 1, "extra": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", "not JSON|lacks"),
        (b'{"schema": 1, "extra": {"a":' + b"[" * 500 + b"]" * 500 + b"}}", "at most 16 levels|lacks"),
        (b'{"schema": 1, "name": "a", "name": "b"}', "one key stands twice"),
        (b'{"schema": 1, "name": "\xff\xfe"}', "not JSON"),
        (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00", "not JSON"),
        (b'{"schema": 999}', "schema version 999, this vlrt reads version 1"),
        (b'{"schema": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_manifests_of_another_kind(tiny_copy: Path, refused: Refused, text: bytes, message: str) -> None:
    (tiny_copy / "manifest.json").write_bytes(text)
    refused(tiny_copy, message)


def test_deep_nesting_in_a_free_field(tiny_copy: Path, refused: Refused) -> None:
    edit(tiny_copy, lambda value: value.update(extra={"a": json.loads("[" * 200 + "]" * 200)}))
    refused(tiny_copy, "at most 16 levels")


def test_escape_sequences_for_the_terminal(tiny_copy: Path, refused: Refused) -> None:
    edit(tiny_copy, lambda value: value.update(card="\x1b]0;owned\x07"))
    refused(tiny_copy, "plain text")


@pytest.mark.parametrize("shape", [["rows", 2**31], [2**31, 2**31], ["rows", 0], ["rows", -1]])
def test_absurd_shapes(tiny_copy: Path, refused: Refused, shape: list[int | str]) -> None:
    edit(tiny_copy, lambda value: value["graphs"]["caption_step"]["inputs"][1].update(shape=shape))
    refused(tiny_copy, "absurd shape")


# --- graphs


def test_an_altered_weight(tiny_copy: Path, refused: Refused) -> None:
    path = tiny_copy / "caption_step.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(tiny_copy, r"`caption_step\.onnx` was altered: its sha256 is")


@pytest.mark.parametrize("role", ["image_encoder", "caption_step"])
def test_truncated_graphs_with_a_manifest_that_fits_them(
    tiny: ModuleType, tiny_copy: Path, refused: Refused, role: str
) -> None:
    path = tiny_copy / f"{role}.onnx"
    data = path.read_bytes()
    for length in (0, 1, 10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        tiny.reseal(tiny_copy)
        refused(tiny_copy, rf"`{role}\.onnx` ")


def test_graphs_of_noise_never_get_further_than_a_refusal(tiny: ModuleType, tiny_copy: Path, refused: Refused) -> None:
    path = tiny_copy / "image_encoder.onnx"
    random = np.random.default_rng(0)
    for length in (3, 50, 1000):
        path.write_bytes(random.bytes(length))
        tiny.reseal(tiny_copy)
        refused(tiny_copy, r"`image_encoder\.onnx` ")


@pytest.mark.parametrize("role", ["image_encoder", "caption_memory", "caption_step"])
def test_flipped_bits_under_a_manifest_that_fits_end_in_a_caption_or_a_refusal(
    tiny: ModuleType, tiny_copy: Path, role: str
) -> None:
    path = tiny_copy / f"{role}.onnx"
    whole = path.read_bytes()
    random = np.random.default_rng(len(role))
    refused = 0
    for _ in range(40):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 3):
            data[place] ^= 1 << random.integers(0, 8)
        path.write_bytes(data)
        tiny.reseal(tiny_copy)
        try:
            Captioner(Bundle.open(tiny_copy))(np.zeros((8, 8, 3), np.uint8))
        except VlrtError:
            refused += 1
    assert refused


def test_names_of_axes_that_are_not_utf8(tiny: ModuleType, tiny_copy: Path) -> None:
    path = tiny_copy / "image_encoder.onnx"
    path.write_bytes(path.read_bytes().replace(b"batch", b"ba\xf4ch"))
    tiny.reseal(tiny_copy)
    with pytest.raises(BundleError, match=r"not UTF-8|cannot be loaded"):
        Sessions(Bundle.open(tiny_copy)).get("image_encoder")


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("outputs", {"name": "other"}, r"has the outputs \['regions'\], the manifest says \['other'\]"),
        ("inputs", {"shape": ["batch", 3, 8, 9]}, r"the manifest says float32 \['batch', 3, 8, 9\]"),
        ("inputs", {"shape": ["batch", 3, 8]}, r"the manifest says float32 \['batch', 3, 8\]"),
        ("inputs", {"dtype": "float16"}, r"the manifest says float16"),
        ("outputs", {"shape": ["batch", 16, 5]}, r"the manifest says float32 \['batch', 16, 5\]"),
    ],
)
def test_a_signature_other_than_the_manifest_says(
    tiny_copy: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    """Buffers are made by the manifest, so a graph that writes more would overrun them."""
    edit(tiny_copy, lambda value: value["graphs"]["image_encoder"][kind][0].update(change))
    edit(tiny_copy, lambda value: [value.pop(key, None) for key in ("decode", "embed")])
    with pytest.raises(BundleError, match=message):
        Sessions(Bundle.open(tiny_copy)).get("image_encoder")


def test_a_named_axis_that_comes_out_larger_than_bound(tiny_copy: Path, tiny: ModuleType) -> None:
    """The graph's own signature leaves an axis open, the manifest fixes it, and the graph then gives more."""
    model = onnx.load(tiny_copy / "caption_step.onnx")
    logits = next(o for o in model.graph.output if o.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "anything"
    next(n for n in model.graph.node if "logits" in n.output).output[0] = "few"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["few"], ["sizes"], start=1),
            helper.make_node("Concat", ["one", "sizes"], ["repeats"], axis=0),
            helper.make_node("Tile", ["few", "repeats"], ["logits"]),
        ]
    )
    onnx.save_model(model, tiny_copy / "caption_step.onnx")
    tiny.reseal(tiny_copy)
    captioner = Captioner(Bundle.open(tiny_copy))
    with pytest.raises(EngineError, match=r"`caption_step\.onnx` failed"):
        captioner(np.zeros((8, 8, 3), np.uint8))


# --- external data


def external_tensor(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def hide(where: str, tensor: onnx.TensorProto) -> Callable[[onnx.ModelProto], None]:
    """Puts a tensor into one of the places that a model may have one."""
    inner = helper.make_graph([], "inner", [], [], [tensor])
    branch = [helper.make_node("Constant", [], ["c"], value=tensor)]

    def initializer(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(tensor)

    def attribute(model: onnx.ModelProto) -> None:
        model.graph.node.append(branch[0])

    def list_attribute(model: onnx.ModelProto) -> None:
        node = helper.make_node("Constant", [], ["c"])
        node.attribute.append(helper.make_attribute("values", [tensor]))
        model.graph.node.append(node)

    def subgraph(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner))

    def function(model: onnx.ModelProto) -> None:
        made = helper.make_function("local", "f", [], ["c"], branch, [helper.make_opsetid("", 21)])
        model.functions.append(made)

    def sparse(model: onnx.ModelProto) -> None:
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)

    def training(model: onnx.ModelProto) -> None:
        model.training_info.add().algorithm.CopyFrom(inner)

    places = (initializer, attribute, list_attribute, subgraph, function, sparse, training)
    return next(place for place in places if place.__name__ == where)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "secret", "goldens.json", "./tokenizer.json"])
@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_graphs_read_no_file_that_the_manifest_does_not_name(
    tiny: ModuleType, tiny_copy: Path, refused: Refused, place: str, location: str
) -> None:
    for folder in (tiny_copy, tiny_copy.parent):
        (folder / "secret").write_bytes(struct.pack("<4f", 1, 2, 3, 4))
    model = onnx.load(tiny_copy / "image_encoder.onnx")
    hide(place, external_tensor(location))(model)
    (tiny_copy / "image_encoder.onnx").write_bytes(model.SerializeToString())
    tiny.reseal(tiny_copy)
    refused(tiny_copy, rf"`image_encoder\.onnx` would read `{location}`")


@pytest.mark.parametrize(
    "place", ["initializer", "attribute", "list_attribute", "subgraph", "function", "sparse", "training"]
)
def test_locations_are_found_wherever_they_hide(tiny_bundle_folder: Path, tmp_path: Path, place: str) -> None:
    model = onnx.load(tiny_bundle_folder / "image_encoder.onnx")
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == set()
    hide(place, external_tensor("weights.bin"))(model)
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == {"weights.bin"}


def test_nodes_that_name_files_of_their_own(tiny_bundle_folder: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny_bundle_folder / "image_encoder.onnx")
    model.graph.node.append(helper.make_node("EPContext", ["pixels"], ["e"], ep_cache_context="../engine.bin"))
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="EPContext"):
        external_files(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a\xff\xff\xff\xff\x0f",  # a graph longer than the file
        b"\x3a\x05\x2a",
        b"\x0b\x0c",  # a group
        b"\xff" * 30,
        b"\x0d\x00",
    ],
)
def test_protobufs_that_lie_about_their_lengths(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"`x\.onnx` is not an ONNX graph"):
        external_files(tmp_path / "x.onnx")


def test_nesting_beyond_measure(tmp_path: Path) -> None:
    """graph -> node -> attribute -> graph -> … ten thousand times."""
    body = b""
    for _ in range(3000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            body = tag + _varint(len(body)) + body
    (tmp_path / "x.onnx").write_bytes(b"\x3a" + _varint(len(body)) + body)
    with pytest.raises(BundleError, match="is not an ONNX graph"):
        external_files(tmp_path / "x.onnx")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def external_bundle(tiny: ModuleType, folder: Path) -> None:
    """Moves the weights of the image encoder beside it, as the exporter does with large ones."""
    model = onnx.load(folder / "image_encoder.onnx")
    onnx.save_model(
        model, folder / "image_encoder.onnx", save_as_external_data=True, location="weights.bin", size_threshold=100
    )
    described = manifest.parse((folder / "manifest.json").read_bytes())
    graph = replace(described.graphs["image_encoder"], external=("weights.bin",))
    tiny.seal(
        folder, replace(described, files=tiny.records(folder), graphs=described.graphs | {"image_encoder": graph})
    )


def test_external_data_that_the_manifest_names_is_verified_and_read(
    tiny: ModuleType, tiny_copy: Path, tiny_bundle_folder: Path, photographs: Path
) -> None:
    external_bundle(tiny, tiny_copy)
    expected = Captioner(Bundle.open(tiny_bundle_folder))(photographs / "a.jpg")
    assert Captioner(Bundle.open(tiny_copy))(photographs / "a.jpg").tokens == expected.tokens


def test_altered_and_truncated_external_data(tiny: ModuleType, tiny_copy: Path, refused: Refused) -> None:
    external_bundle(tiny, tiny_copy)
    path = tiny_copy / "weights.bin"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    refused(tiny_copy, r"`weights\.bin` was altered")
    path.write_bytes(data[:-100])
    refused(tiny_copy, r"`weights\.bin` has .* bytes, expected")
    tiny.reseal(tiny_copy)
    refused(tiny_copy, r"`image_encoder\.onnx` cannot be loaded")


# --- other files


class Bomb:
    """Its unpickling leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "X"}}']
)
def test_a_tokenizer_that_is_none(tiny: ModuleType, tiny_copy: Path, refused: Refused, content: bytes) -> None:
    (tiny_copy / "tokenizer.json").write_bytes(content)
    tiny.reseal(tiny_copy)
    refused(tiny_copy, r"`tokenizer\.json` is not a tokenizer")


def test_pickles_are_not_run(tiny: ModuleType, tiny_copy: Path, refused: Refused, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    bomb = pickle.dumps(Bomb(trace))
    for name in ("tokenizer.json", "image_encoder.onnx"):
        before = (tiny_copy / name).read_bytes()
        (tiny_copy / name).write_bytes(bomb)
        tiny.reseal(tiny_copy)
        refused(tiny_copy, f"`{name}`")
        (tiny_copy / name).write_bytes(before)
    assert not trace.exists()
    pickle.loads(bomb)
    assert trace.exists(), "the bomb works where it is unpickled"


def test_a_tokenizer_with_more_words_than_the_model(tiny: ModuleType, tiny_copy: Path) -> None:
    """Its ids would read beyond the embedding table."""
    value = json.loads((tiny_copy / "tokenizer.json").read_text("utf-8"))
    value["model"]["vocab"]["zebra"] = 4000
    (tiny_copy / "tokenizer.json").write_text(json.dumps(value), "utf-8")
    tiny.reseal(tiny_copy)
    with pytest.raises(BundleError, match=r"the tokenizer gives the id 4000, the model has a vocabulary of 15"):
        TextCodec.open(Bundle.open(tiny_copy)).encode(["a zebra"])


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", '{"pixels": 1}', '{"pixels": {}}', '{"decode": 5}', '{"pixels": {"shape": [1, 3, 8, 8]}}'],
)
def test_goldens_that_are_none(tiny: ModuleType, tiny_copy: Path, content: str) -> None:
    (tiny_copy / "goldens.json").write_text(content, "utf-8")
    tiny.reseal(tiny_copy)
    try:
        found = list(verify(Bundle.open(tiny_copy)))
    except BundleError as error:
        assert "golden" in error.what  # noqa: PT017 - refused, or measured as failing
    else:
        assert not all(measurement.passed for measurement in found)
