"""Errors meant for people: what went wrong in one line, and what to do about it."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_LONGEST = 2000


def one_line(text: str) -> str:
    """The text with control characters as escapes, and without its middle where it is unbearably long."""
    line = _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]}…{line[-half:]}"


class VlrtError(Exception):
    """A mistake or a missing thing that its user can mend.

    Args:
        what: one line, lower case, the thing in backticks, what was got and what was expected. Control characters (a
            file name may hold any) become escapes, so that it stays one line and moves no cursor.
        hint: a command or an action that helps; empty where there is none.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = one_line(what)
        super().__init__(self.what)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\nhint: {self.hint}" if self.hint else self.what


class UsageError(VlrtError):
    """An option or argument that cannot be meant: wrong value, wrong combination."""

    exit_code = 2


class BundleError(VlrtError):
    """A bundle that is missing, damaged, of another schema, or unable to do what was asked."""


class EngineError(VlrtError):
    """An inference engine or device that was asked for and cannot be had."""


class ImageError(VlrtError):
    """An input that is not an image we can read."""


class VlrtWarning(UserWarning):
    """Something that was done otherwise than its user may think; the command line shows it in one line."""


class VlrtNote(VlrtWarning):
    """Something that takes long, and only this once."""
