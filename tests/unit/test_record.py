"""Records take exactly what their annotations say, and name the place of anything else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from vlrt import record
from vlrt.errors import BundleError


@dataclass(frozen=True)
class Inner:
    sides: tuple[int, int]
    axes: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    scale: float = 1.0
    on: bool = False
    kind: Literal["a", "b"] = "a"
    maybe: int | None = None
    table: dict[str, float] = field(default_factory=dict)
    free: Any = None


FULL = Outer("n", Inner((1, 2), (3, "batch")), 2.5, True, "b", 7, {"x": 1.0}, {"deep": [1, None, True, "s", 0.5]})


def test_round_trip() -> None:
    assert record.read(Outer, json.loads(json.dumps(record.write(FULL))), "o") == FULL


def test_what_is_at_its_default_is_not_written() -> None:
    least = Outer("n", Inner((1, 2)))
    assert record.write(least) == {"name": "n", "inner": {"sides": [1, 2]}}
    assert record.read(Outer, record.write(least), "o") == least


def test_whole_numbers_are_numbers_but_not_the_reverse() -> None:
    assert record.read(Outer, {"name": "n", "inner": {"sides": [1, 2]}, "scale": 3}, "o").scale == 3.0


@pytest.mark.parametrize(
    ("change", "place", "expected"),
    [
        ({"new": 1}, "`o`", "unknown key 'new'"),
        ({"name": None}, "`o.name`", "expected plain text"),
        ({"name": 3}, "`o.name`", "expected plain text"),
        ({"name": "a\x1b[31m"}, "`o.name`", "expected plain text"),
        ({"name": "\ud800"}, "`o.name`", "expected plain text"),
        ({"inner": []}, "`o.inner`", "expected an object"),
        ({"inner": {"sides": [1]}}, "`o.inner.sides`", "expected a list of 2"),
        ({"inner": {"sides": {}}}, "`o.inner.sides`", "expected a list"),
        ({"inner": {"sides": [1, 2.0]}}, "`o.inner.sides[1]`", "expected a whole number"),
        ({"inner": {"sides": [1, True]}}, "`o.inner.sides[1]`", "expected a whole number"),
        ({"inner": {"sides": [1, 2], "axes": [1.5]}}, "`o.inner.axes[0]`", "expected a whole number"),
        ({"inner": {}}, "`o.inner`", "lacks `sides`"),
        ({"scale": "1"}, "`o.scale`", "expected a finite number"),
        ({"scale": True}, "`o.scale`", "expected a finite number"),
        ({"scale": float("nan")}, "`o.scale`", "expected a finite number"),
        ({"scale": float("inf")}, "`o.scale`", "expected a finite number"),
        ({"scale": 10**400}, "`o.scale`", "expected a finite number"),
        ({"on": 1}, "`o.on`", "expected true or false"),
        ({"kind": "c"}, "`o.kind`", "expected one of 'a', 'b'"),
        ({"kind": ["a"]}, "`o.kind`", "expected one of 'a', 'b'"),
        ({"maybe": "7"}, "`o.maybe`", "expected a whole number"),
        ({"table": [1]}, "`o.table`", "expected an object"),
        ({"table": {"x": "y"}}, "`o.table.x`", "expected a finite number"),
        ({"table": {"x\x00": 1}}, "`o.table`", "expected plain text"),
        ({"free": [1, [float("nan")]]}, "`o.free[1][0]`", "expected a finite number"),
        ({"free": {"x": "\x07"}}, "`o.free.x`", "expected plain text"),
        ({"free": json.loads("[" * 40 + "]" * 40)}, "`o.free[0]", "expected at most 16 levels"),
    ],
)
def test_refusals_name_the_place_and_what_was_expected(change: dict[str, Any], place: str, expected: str) -> None:
    value = {"name": "n", "inner": {"sides": [1, 2]}} | change
    with pytest.raises(BundleError) as caught:
        record.read(Outer, value, "o")
    assert place in caught.value.what
    assert expected in caught.value.what
    assert "\n" not in caught.value.what


def test_a_missing_key_is_named() -> None:
    with pytest.raises(BundleError, match="`o` lacks `name`"):
        record.read(Outer, {"inner": {"sides": [1, 2]}}, "o")


def test_an_enormous_value_does_not_fill_the_message() -> None:
    for value in ("x" * 10**6, ["x"] * 10**6, {str(i): i for i in range(10**5)}, 10**4000):
        with pytest.raises(BundleError) as caught:
            record.read(Outer, {"name": "n", "inner": {"sides": [1, 2]}, "kind": value}, "o")
        assert len(caught.value.what) < 200
