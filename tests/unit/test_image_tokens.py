"""Bundles that draw codes: what their manifests must agree on, and how a request to draw is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vlrt.attention_patterns import PatternSpec
from vlrt.draw_request import DrawRequest
from vlrt.errors import BundleError, UsageError
from vlrt.manifest import (
    CodecSpec,
    DecodeSpec,
    FileRecord,
    GraphSpec,
    ImageTokensSpec,
    Manifest,
    Source,
    StateSpec,
    TensorSpec,
    TextSpec,
    dump,
    parse,
)

GRID = (2, 3)
PATTERN = PatternSpec("row", "row", 4, GRID)


def graph(name: str, inputs: list[TensorSpec], outputs: list[TensorSpec]) -> GraphSpec:
    return GraphSpec(f"{name}.onnx", "fp32", tuple(inputs), tuple(outputs))


def described(**changes: Any) -> Manifest:
    cache = TensorSpec("key", "float32", ("rows", 1, PATTERN.positions, 8))
    decode = DecodeSpec(
        chain=("text",),
        step="step",
        vocabulary=5,
        start_ids=(0,) * 4,
        end_ids=(),
        pad_id=0,
        states=(StateSpec("kv", "key", "next_key", pattern="row"), StateSpec("memory", "prefix")),
        max_length=10,
        patterns=(PATTERN,),
    )
    ids, prefix = TensorSpec("input_ids", "int64", ("images", 4)), TensorSpec("prefix", "float32", ("images", 4, 8))
    token = TensorSpec("token", "int64", ("rows", "width"))
    logits = TensorSpec("logits", "float32", ("rows", 5))
    tokens = TensorSpec("tokens", "int64", ("batch", "rows", "columns"))
    pixels = TensorSpec("pixels", "float32", ("batch", 3, "height", "width"))
    graphs = {
        "text": graph("text", [ids], [prefix]),
        "step": graph("step", [token, prefix, cache], [logits, replace(cache, name="next_key")]),
        "image_detokenizer": graph("image_detokenizer", [tokens], [pixels]),
    }
    files = {spec.file: FileRecord(1, "0" * 64) for spec in graphs.values()} | {"t.json": FileRecord(1, "0" * 64)}
    given: dict[str, Any] = {
        "schema": 1,
        "name": "tiny",
        "family": "dalle",
        "tasks": ("generate",),
        "source": Source("random", "seed 0", "none"),
        "files": files,
        "graphs": graphs,
        "text": TextSpec("t.json", 4, 9, 0, pad_to_context=True),
        "decode": decode,
        "codec": CodecSpec(5, 4, 8, tokenizer=""),
        "image_tokens": ImageTokensSpec(GRID, 5),
    }
    return Manifest(**(given | changes))


def test_a_manifest_that_fits_survives_its_file() -> None:
    assert parse(dump(described())) == described()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": 4}, "expected a vocabulary of 4"),
        ({"max_length": 9}, "room for 9 positions, not for 2 x 3 codes behind 4 others"),
        ({"patterns": (replace(PATTERN, grid=(3, 2)),)}, r"of a grid \[3, 2\], not \[2, 3\]"),
        ({"patterns": ()}, "names the pattern `row`, which is not there"),
        ({"patterns": (PATTERN, PATTERN)}, "names of their own"),
        ({"patterns": (PATTERN, replace(PATTERN, name="other", text=5))}, "one length of text"),
        ({"states": (StateSpec("shift", "key", "next_key"), StateSpec("memory", "prefix"))}, "names the pattern ``"),
    ],
)
def test_a_decoder_that_does_not_fit_its_picture(change: dict[str, Any], message: str) -> None:
    decode = described().decode
    assert decode is not None
    with pytest.raises(BundleError, match=message):
        described(decode=replace(decode, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_tokens": ImageTokensSpec(GRID, 6)}, "the decoder writes 6 codes, the codec has 5"),
        ({"image_tokens": ImageTokensSpec(GRID, 5, first_id=1)}, "has 5 ids, not 5 codes from 1 on"),
        (
            {"codec": CodecSpec(5, 4, 8, (3, 2), fixed=True, tokenizer="")},
            r"grid of \[2, 3\], the codec takes \[3, 2\]",
        ),
        ({"codec": None}, "needs a decode section and a codec"),
    ],
)
def test_a_codec_that_does_not_fit_its_decoder(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        described(**change)


def test_a_request_says_what_makes_its_pictures_again() -> None:
    request = DrawRequest.of({"candidates": 8, "keep": 2, "seed": 7, "top_k": 9, "rank": "clip"})
    assert request.parameters() == {"seed": 7, "candidates": 8, "keep": 2, "top_k": 9, "rank": "clip"}
    assert DrawRequest.of(request.parameters()) == request
    assert DrawRequest.of({"guidance": {"codes": 3.0}}).guidance == 3.0
    assert (DrawRequest(count=3).kept, DrawRequest(count=3).drawn) == (3, 3)
    assert DrawRequest().seed != DrawRequest().seed


@pytest.mark.parametrize(("rows", "grid", "kept"), [(None, (32, 32), 14), (None, (2, 3), 1), (5, (8, 8), 5)])
def test_rows_of_a_photograph(rows: int | None, grid: tuple[int, int], kept: int) -> None:
    """7 of 16 where nothing is said, as the paper has it."""
    assert DrawRequest(complete="photo.jpg", rows=rows).rows_of(grid) == kept
    assert DrawRequest().rows_of(grid) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidats": 4}, "no option `candidats` here\nhint: did you mean `candidates`"),
        ({"candidates": 0}, "`candidates` is 0, expected 1 to 1024"),
        ({"keep": 5, "candidates": 4}, "5 pictures are to be kept of 4"),
        ({"seed": 2**64}, "does not fit 64 bits"),
        ({"rows": 3}, "add `complete`"),
        ({"guidance": {"latents": 3.0}}, "no stages latents\nhint: `codes` is the only one"),
    ],
)
def test_requests_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DrawRequest.of(options)
