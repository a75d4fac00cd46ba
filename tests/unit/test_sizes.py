"""Sizes that depend on an input's: computed with numbers, and behind windows."""

from __future__ import annotations

import pytest

from vlrt.device_graph.sizes import behind_window, computed


@pytest.mark.parametrize(
    ("first", "sign", "second", "expected"),
    [
        ("height", "+", 1, "height + 1"),
        (-1, "+", "8*height", "8*height - 1"),
        ("8*height - 1", "/", 2, "4*height - 1"),
        ("4*height - 1", "+", 1, "4*height"),
        (2, "*", "2*height", "4*height"),
        ("2*height", "/", 2, "height"),
        ("height", "/", 2, None),
        ("2*height - 3", "/", 2, None),  # it may be negative, and rounded the other way
        ("height", "*", "width", None),
        (3, "-", "height", None),
        ("height", "*", 0, None),
        ("? 7", "+", 1, None),
    ],
)
def test_arithmetic(first: int | str, sign: str, second: int | str, expected: str | None) -> None:
    assert computed(first, sign, second) == expected


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize(("excess", "step"), [(-1, 1), (-1, 2), (-2, 1), (1, 2), (-3, 4)])
def test_a_named_size_behind_a_window_is_what_a_number_gives(excess: int, step: int, times: int) -> None:
    found = behind_window("8*n", excess, step)
    assert isinstance(found, str)
    factor, _, offset = found.replace("*n", " ").partition(" ")
    number = int(factor.replace("n", "1")) * times + int(offset.replace(" ", "") or 0)
    assert number == behind_window(8 * times, excess, step)
