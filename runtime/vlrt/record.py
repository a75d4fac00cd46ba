"""Strict translation between JSON objects and frozen dataclasses.

A record says what it holds by its annotations; `read` refuses anything else and names the place, so that a manifest
is either wholly understood or refused.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from vlrt.errors import BundleError

T = TypeVar("T")

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_DEEPEST = 16
"""Levels that a free-form value may nest; far more than any manifest needs, far less than what exhausts a stack."""


def read(kind: type[T], value: object, where: str) -> T:
    """Builds a `kind` from parsed JSON.

    Args:
        kind: a frozen dataclass whose annotations are made of str, int, float, bool, Literal, Optional, tuple,
            dict and further such dataclasses.
        value: what `json.loads` returned.
        where: a name for the place, used in messages, e.g. ``manifest.decode``.

    Raises:
        BundleError: an unknown or missing key, a value of another type, a non-finite number.
    """
    built = _convert(kind, value, where)
    return typing.cast(T, built)


def write(value: Any) -> Any:
    """The JSON form of a record: dataclasses become objects, tuples become lists; fields at their default stay out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: write(getattr(value, f.name)) for f in dataclasses.fields(value) if not _is_default(f, value)}
    if isinstance(value, Mapping):
        return {key: write(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [write(item) for item in value]
    return value


def _is_default(spec: dataclasses.Field[Any], value: object) -> bool:
    if spec.default is not dataclasses.MISSING:
        return bool(getattr(value, spec.name) == spec.default)
    if spec.default_factory is not dataclasses.MISSING:
        return bool(getattr(value, spec.name) == spec.default_factory())
    return False


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return _free(value, where)
    if dataclasses.is_dataclass(hint):
        return _record(hint, value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, where)
    if origin is typing.Literal:
        return _expect(value in arguments, value, where, "one of " + ", ".join(map(repr, arguments)))
    if origin is tuple:
        return _sequence(arguments, value, where)
    if origin is dict:
        _expect(isinstance(value, dict), value, where, "an object")
        return {_text(key, where): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    return _scalar(hint, value, where)


def _free(value: Any, where: str, depth: int = 0) -> Any:
    """A value of no declared type: whatever JSON has, finite and not deeper than any honest file goes."""
    _expect(depth <= _DEEPEST, "...", where, f"at most {_DEEPEST} levels")
    if isinstance(value, dict):
        return {_text(key, where): _free(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_free(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, (int, float)):
        return _expect(_finite(value), value, where, "a finite number")
    return _text(value, where) if isinstance(value, str) else value


def _text(value: Any, where: str) -> Any:
    """A string without control characters or halves of surrogate pairs: it will be printed on somebody's terminal."""
    return _expect(isinstance(value, str) and not _UNPRINTABLE.search(value), value, where, "plain text")


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
        return float(_expect(ok, value, where, "a finite number"))
    if hint is int:
        return _expect(isinstance(value, int) and not isinstance(value, bool), value, where, "a whole number")
    if hint is bool:
        return _expect(isinstance(value, bool), value, where, "true or false")
    if hint is str:
        return _text(value, where)
    if hint is type(None):
        return _expect(value is None, value, where, "null")
    raise TypeError(f"a record cannot hold {hint!r}")


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # JSON's whole numbers have any length
        return False


def _record(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields), key=str)
    if unknown:
        raise BundleError(f"`{where}` has the unknown key {_shown(unknown[0])}", "was it written by a newer vlrt?")
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise BundleError(f"`{where}` lacks `{name}`", "export the bundle again")
    hints = _hints(kind)
    return kind(**{key: _convert(hints[key], item, f"{where}.{key}") for key, item in value.items()})


def _union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    problem: BundleError | None = None
    for option in options:
        try:
            return _convert(option, value, where)
        except BundleError as error:
            problem = problem or error
    raise problem or BundleError(f"`{where}` cannot be read")


def _sequence(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), value, where, "a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    _expect(len(value) == len(arguments), value, where, f"a list of {len(arguments)}")
    return tuple(_convert(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(arguments, value)))


def _expect(ok: bool, value: Any, where: str, expected: str) -> Any:
    if not ok:
        raise BundleError(f"`{where}` is {_shown(value)}, expected {expected}", "export the bundle again")
    return value


def _shown(value: Any) -> str:
    """A value in a message: never longer than a line, and as escapes where it would disturb a terminal."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "an enormous number"
    shown = repr(value[:60] if isinstance(value, str) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
