"""Errors meant for people are one line with a hint."""

from __future__ import annotations

import pytest

from vlrt.errors import BundleError, EngineError, ImageError, UsageError, VlrtError


def test_the_message_has_the_hint_on_a_line_of_its_own() -> None:
    error = VlrtError("`x` is 3, expected 4", "give 4")
    assert str(error) == "`x` is 3, expected 4\nhint: give 4"
    assert (error.what, error.hint) == ("`x` is 3, expected 4", "give 4")
    assert str(VlrtError("`x` is 3")) == "`x` is 3"


@pytest.mark.parametrize(("kind", "code"), [(UsageError, 2), (BundleError, 1), (EngineError, 1), (ImageError, 1)])
def test_exit_codes(kind: type[VlrtError], code: int) -> None:
    assert kind("x").exit_code == code
    assert issubclass(kind, VlrtError)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\nb.jpg", r"a\nb.jpg"), ("\x1b[2J", r"\x1b[2J"), ("a\u2028b", r"a\u2028b"), ("größe.jpg", "größe.jpg")],
)
def test_names_cannot_break_the_line_or_move_the_cursor(name: str, shown: str) -> None:
    assert VlrtError(f"`{name}` is missing").what == f"`{shown}` is missing"


def test_a_message_cannot_flood_the_terminal() -> None:
    error = VlrtError("`" + "x" * 1_000_000 + "` is too long")
    assert len(error.what) < 2100
    assert error.what.endswith("` is too long")
