"""Labels, templates and learned prompts: what is refused, and what rows of ids they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlrt.bundle import Bundle
from vlrt.errors import UsageError, VlrtError
from vlrt.prompts import LearnedPrompts, check_labels, check_templates, fill, read_lines, split_labels
from vlrt.tensor_file import read_tensors
from vlrt.text import TextCodec, TextTruncatedWarning


@pytest.fixture(scope="module")
def codec(tiny_bundle_folder: Path) -> TextCodec:
    return TextCodec.open(Bundle.open(tiny_bundle_folder))


def test_labels_are_split_at_commas() -> None:
    assert split_labels(" a dog,a cat , ,bicycle,") == ("a dog", "a cat", "bicycle")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "at least two labels, got none"),
        (["dog"], "at least two labels, got `dog` alone"),
        (["dog", "cat", "dog"], "`dog` is given twice"),
        (["dog", " "], "a label is empty"),
    ],
)
def test_labels_that_leave_no_choice(labels: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        check_labels(labels)
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("templates", [[], ["a photo"], ["a {} and a {}"], ["a {}", "none"]])
def test_templates_need_one_place_for_the_label(templates: list[str]) -> None:
    with pytest.raises(UsageError, match="template"):
        check_templates(templates)


@pytest.mark.parametrize(
    ("template", "label", "sentence"),
    [
        ("a photo of a {}.", "dog", "a photo of a dog."),
        ("a photo of a {}.", "a dog", "a photo of a dog."),
        ("a photo of a {}.", "The dog", "a photo of The dog."),
        ("a photo of the {}.", "an owl", "a photo of an owl."),
        ("a photo of a {}.", "anteater", "a photo of a anteater."),
        ("look: {}", "a dog", "look: a dog"),
    ],
)
def test_articles_are_not_doubled(template: str, label: str, sentence: str) -> None:
    assert fill(template, label) == sentence


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("\ufeffdog\r\n\n  café \n".encode())
    assert read_lines(path) == ("dog", "café")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(VlrtError, match="not UTF-8"):
        read_lines(path)
    with pytest.raises(VlrtError, match="does not exist"):
        read_lines(tmp_path / "nothing.txt")


@pytest.mark.parametrize(
    ("position", "ids", "index"),
    [
        ("end", [1, 1, 1, 1, 5, 6, 3, 2], [-1, 0, 1, 2, -1, -1, -1, -1]),
        ("middle", [1, 1, 5, 6, 1, 1, 3, 2], [-1, 0, -1, -1, 1, 2, -1, -1]),
        ("front", [1, 5, 6, 1, 1, 1, 3, 2], [-1, -1, -1, 0, 1, 2, -1, -1]),
    ],
)
def test_places_of_learned_vectors(position: Any, ids: list[int], index: list[int], codec: TextCodec) -> None:
    """Start (1), the label "the dog" (5, 6), its full stop (3, unknown here), end (2); vectors hold start ids."""
    prompt = LearnedPrompts(np.zeros((3, 4), np.float32), position).prompt("the_dog", codec)
    assert list(prompt.ids) == ids
    assert list(prompt.index) == index


def test_an_overlong_label_is_cut_and_keeps_its_end_and_vectors(codec: TextCodec) -> None:
    with pytest.warns(TextTruncatedWarning):
        prompt = LearnedPrompts(np.zeros((3, 4), np.float32), "middle").prompt("dog " * 40, codec)
    assert len(prompt.ids) == codec.spec.context
    assert prompt.ids[-1] == 2
    assert [v for v in prompt.index if v >= 0] == [0, 1, 2]


@pytest.mark.parametrize(
    ("vectors", "more", "message"),
    [
        (np.zeros(4, np.float32), {}, r"shape \[4\]"),
        (np.zeros((0, 4), np.float32), {}, "shape"),
        (np.full((2, 4), np.nan, np.float32), {}, "finite"),
        (np.zeros((2, 4)), {}, "finite float32"),
        (np.zeros((2, 4), np.float32), {"position": "left"}, "position is `left`"),
        (np.zeros((2, 3, 4), np.float32), {"labels": ("a",)}, "name 1 labels"),
    ],
)
def test_learned_prompts_validate_themselves(vectors: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(VlrtError, match=message):
        LearnedPrompts(vectors, **more)


def safetensors_bytes(tensors: dict[str, tuple[str, list[int], bytes]], words: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": words}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_both_file_forms(tmp_path: Path) -> None:
    vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.savez(tmp_path / "a.npz", context=vectors, position=np.asarray("front"), labels=np.asarray("dog\ncat"))
    words = {"position": "front", "labels": "dog\ncat"}
    data = safetensors_bytes({"context": ("F16", [2, 4], vectors.astype("<f2").tobytes())}, words)
    (tmp_path / "b.safetensors").write_bytes(data)
    for name in ("a.npz", "b.safetensors"):
        found = LearnedPrompts.open(tmp_path / name)
        assert np.array_equal(found.vectors, vectors)
        assert found.vectors.dtype == np.float32
        assert (found.position, found.labels, found.count, found.width) == ("front", ("dog", "cat"), 2, 4)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"x", "neither"),
        ("a.npz", b"", "damaged"),
        ("a.npz", b"PK\x03\x04junk", "damaged"),
        ("a.safetensors", b"\xff" * 32, "damaged"),
        ("a.safetensors", b"\x02\0\0\0\0\0\0\0[]", "damaged"),
        ("a.safetensors", safetensors_bytes({"context": ("F32", [9], b"\0" * 4)}, {}), "damaged"),
        ("a.safetensors", safetensors_bytes({"context": ("X", [1], b"\0" * 4)}, {}), "damaged"),
        ("a.safetensors", safetensors_bytes({"other": ("F32", [1], b"\0" * 4)}, {}), "holds `other`"),
    ],
)
def test_files_that_are_no_prompts(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(VlrtError, match=message):
        LearnedPrompts.open(tmp_path / name)


def test_tensors_never_reach_beyond_the_file(tmp_path: Path) -> None:
    whole = safetensors_bytes({"context": ("F32", [2, 2], b"\0" * 16)}, {})
    path = tmp_path / "a.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(VlrtError, match="damaged"):
            read_tensors(path)


def test_an_object_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", context=np.array([{"a": 1}], dtype=object))
    with pytest.raises(VlrtError, match="damaged"):
        LearnedPrompts.open(tmp_path / "a.npz")
