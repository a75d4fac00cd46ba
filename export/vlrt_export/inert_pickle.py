"""A pickle reader that cannot call anything: opcodes become plain data.

`pickle.Unpickler` with a restricted `find_class` still *calls* what it is given. This reader has no call at all:
a REDUCE or NEWOBJ opcode yields a `Record` that names the callable and holds its arguments, a GLOBAL yields a
`Global` that holds two strings. Opcode framing comes from the standard library's `pickletools`; the meaning of each
opcode follows the documentation there.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import IO, Any

from vlrt.errors import VlrtError

MAX_OPCODES = 50_000_000


@dataclass(frozen=True)
class Global:
    """The *name* of a module-level object; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Record:
    """What the file wanted to be called: the callable's name, its arguments, and the state laid on the result."""

    kind: Any
    args: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PersistentId:
    """A reference to data beside the pickle, such as one tensor's storage."""

    value: Any


class MalformedPickleError(ValueError):
    """The byte stream is not a pickle this reader follows."""


_MARK = object()
_SCALARS = (str, bytes, int, float, bool, type(None), Global, Record, PersistentId)
_SETS = (Global("__builtin__", "set"), Global("builtins", "set"))


class InertReader:
    """One pickle of a stream, read into dicts, lists, tuples, scalars, `Global`, `Record` and `PersistentId`.

    Args:
        stream: binary stream positioned at the pickle's first byte; it is left behind its STOP opcode.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Returns the pickled value as data.

        Raises:
            MalformedPickleError: truncated or inconsistent opcodes, or extension and out-of-band opcodes.
        """
        try:
            return self._read()
        except MalformedPickleError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise MalformedPickleError(str(error) or type(error).__name__) from error
        except (MemoryError, RecursionError, AssertionError) as error:
            raise MalformedPickleError(type(error).__name__) from error

    def _read(self) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self._stream)):
            if opcode.name == "STOP":
                return self._pop()
            if count > MAX_OPCODES:
                raise MalformedPickleError(f"more than {MAX_OPCODES} opcodes")
            self._execute(opcode.name, argument)
        raise MalformedPickleError("no STOP opcode")

    def _execute(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _IGNORED:
            raise MalformedPickleError(f"opcode {name} is not supported")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise MalformedPickleError("a mark where a value was expected")
        return value

    def _pop_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise MalformedPickleError("no mark on the stack")

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Global(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise MalformedPickleError("STACK_GLOBAL names that are not text")
        self._stack.append(Global(module, name))

    def _reduce(self, _: Any) -> None:
        args, kind = self._pop(), self._pop()
        self._stack.append(_constructed(kind, args))

    def _new_object_ex(self, _: Any) -> None:
        keywords, args, kind = self._pop(), self._pop(), self._pop()
        self._stack.append(Record(kind, args, keywords))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(Record(Global(module, name), tuple(self._pop_mark())))

    def _object(self, _: Any) -> None:
        kind, *args = self._pop_mark()
        self._stack.append(Record(kind, tuple(args)))

    def _build(self, _: Any) -> None:
        state = self._pop()
        target = self._stack[-1]
        if isinstance(target, Record):
            target.state = state

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Record):
            target.items.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        else:
            raise MalformedPickleError(f"APPEND to a {type(target).__name__}")

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        entries = target.entries if isinstance(target, Record) else target
        if not isinstance(entries, dict):
            raise MalformedPickleError(f"SETITEM on a {type(target).__name__}")
        entries.update(_pairs(items))

    def _add_items(self, _: Any) -> None:
        items = self._pop_mark()
        target = self._stack[-1]
        if not isinstance(target, set):
            raise MalformedPickleError(f"ADDITEMS to a {type(target).__name__}")
        target.update(_key(item) for item in items)

    def _put(self, argument: Any) -> None:
        self._memo[int(argument)] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, argument: Any) -> None:
        self._stack.append(self._memo[int(argument)])

    def _tuple(self, length: int) -> None:
        items = [self._pop() for _ in range(length)]
        self._stack.append(tuple(reversed(items)))


def read_pickle(stream: IO[bytes]) -> Any:
    """Reads one pickle as inert data; see `InertReader`.

    Raises:
        VlrtError: the stream is not a readable pickle.
    """
    try:
        return InertReader(stream).read()
    except MalformedPickleError as error:
        raise VlrtError(f"pickle data is damaged or not a pickle: {error}", "download the file again") from error


def _key(value: Any) -> Hashable:
    """Nested tuples are refused: hashing a deep or self-doubling one would exhaust the stack or the clock."""
    flat = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(item, _SCALARS) for item in flat):
        raise MalformedPickleError(f"a {type(value).__name__} as a key")
    return value  # type: ignore[no-any-return]


def _pairs(items: list[Any]) -> dict[Hashable, Any]:
    if len(items) % 2:
        raise MalformedPickleError("a key without a value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _constructed(kind: Any, args: Any) -> Any:
    """A Record; ordered dictionaries and sets become Python's own, for they hold data only."""
    if not isinstance(kind, Global):
        return Record(kind, args)
    if kind == Global("collections", "OrderedDict") and isinstance(args, tuple) and len(args) <= 1:
        return {_key(key): value for key, value in args[0]} if args else {}
    if kind in _SETS and isinstance(args, tuple) and len(args) == 1:
        return {_key(item) for item in args[0]}
    return Record(kind, args)


_LITERAL_OPCODES = """
INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES
BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
"""
_LITERALS = frozenset(_LITERAL_OPCODES.split())
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_IGNORED = frozenset(("PROTO", "FRAME"))
_ACTIONS: dict[str, Callable[[InertReader, Any], Any]] = {
    "GLOBAL": InertReader._global,
    "STACK_GLOBAL": InertReader._stack_global,
    "REDUCE": InertReader._reduce,
    "NEWOBJ": InertReader._reduce,
    "NEWOBJ_EX": InertReader._new_object_ex,
    "INST": InertReader._inst,
    "OBJ": InertReader._object,
    "BUILD": InertReader._build,
    "APPEND": lambda reader, _: reader._append([reader._pop()]),
    "APPENDS": lambda reader, _: reader._append(reader._pop_mark()),
    "SETITEM": lambda reader, _: reader._set_items([reader._pop(), reader._pop()][::-1]),
    "SETITEMS": lambda reader, _: reader._set_items(reader._pop_mark()),
    "ADDITEMS": InertReader._add_items,
    "LIST": lambda reader, _: reader._stack.append(reader._pop_mark()),
    "TUPLE": lambda reader, _: reader._stack.append(tuple(reader._pop_mark())),
    "DICT": lambda reader, _: reader._stack.append(_pairs(reader._pop_mark())),
    "FROZENSET": lambda reader, _: reader._stack.append(frozenset(map(_key, reader._pop_mark()))),
    "TUPLE1": lambda reader, _: reader._tuple(1),
    "TUPLE2": lambda reader, _: reader._tuple(2),
    "TUPLE3": lambda reader, _: reader._tuple(3),
    "POP": lambda reader, _: reader._stack.pop(),
    "POP_MARK": lambda reader, _: reader._pop_mark(),
    "DUP": lambda reader, _: reader._stack.append(reader._stack[-1]),
    "GET": InertReader._get,
    "BINGET": InertReader._get,
    "LONG_BINGET": InertReader._get,
    "PUT": InertReader._put,
    "BINPUT": InertReader._put,
    "LONG_BINPUT": InertReader._put,
    "MEMOIZE": InertReader._memoize,
    "PERSID": lambda reader, argument: reader._stack.append(PersistentId(argument)),
    "BINPERSID": lambda reader, _: reader._stack.append(PersistentId(reader._pop())),
}
