"""Where results go: lines for people, JSON lines for programs, a file that a later run resumes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from vlrt.errors import VlrtError

_SURROGATE = re.compile("[\ud800-\udfff]")
_START = b'{"image": "'
"""How every line that we write begins."""


class ResultLines:
    """Prints results and appends them to a JSONL file, each line whole.

    Used in a ``with`` block, which opens the file: leaving it normally is `finish`, leaving it by an exception keeps
    what can be resumed and removes what cannot.

    Args:
        as_json: print JSON objects instead of text.
        out: file of JSON lines, or `None`.
        resume: go on with a file that an earlier run left: images that it holds a result for are `done`; lines of
            failures are dropped, since those inputs are tried again. Otherwise the file is replaced when all is done.

    Raises:
        VlrtError: the file cannot be read or written, or holds something else.
    """

    def __init__(self, as_json: bool, out: Path | None, resume: bool = True) -> None:
        self.as_json = as_json
        self.out = None if out is None else Path(os.path.realpath(out))
        self.failed = 0
        self.done: set[str] = set()
        self._given, self._resumes = out, resume
        self._part: Path | None = None
        self._stream: io.TextIOWrapper | None = None

    def _resume(self, out: Path) -> io.TextIOWrapper:
        if out.exists():
            kept, whole = _earlier(out)
            self.done = set(kept)
            if not whole:
                # Rewritten under another name, so that an interruption here loses nothing.
                with _written_whole(out) as stream:
                    stream.writelines(kept.values())
        return open(out, "a", encoding="utf-8")

    def _replace(self, out: Path) -> io.TextIOWrapper:
        _refuse_special(out)
        self._part = out.with_name(f".{out.name}.part")
        return open(self._part, "w", encoding="utf-8")

    def __enter__(self) -> ResultLines:
        if self.out is None:
            return self
        try:
            self._stream = self._resume(self.out) if self._resumes else self._replace(self.out)
        except OSError as error:
            what = f"`{self._given}` cannot be written: {error.strerror}"
            raise VlrtError(what, "choose another with --out") from None
        except BaseException:  # an interrupt that comes just after the file was made
            if self._part is not None:
                self._part.unlink(missing_ok=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        elif self._stream is not None:
            self._stream.close()
            if self._part is not None:
                self._part.unlink(missing_ok=True)

    def result(self, value: Mapping[str, Any], text: str) -> None:
        """One result: `value` for programs, `text` for people."""
        line = to_json(value)
        self._write(line)
        if self.as_json:
            click.echo(line)
        elif self.out is None:
            click.echo(text)

    def failure(self, image: str, error: VlrtError | str) -> None:
        """One input that could not be done; the run goes on and ends with exit code 1."""
        what = error.what if isinstance(error, VlrtError) else error
        self.failed += 1
        line = to_json({"image": image, "error": what})
        self._write(line)
        if self.as_json:
            click.echo(line)
        else:
            hint = f" (hint: {error.hint})" if isinstance(error, VlrtError) and error.hint else ""
            click.echo(f"error: {what}{hint}", err=True)

    def close(self) -> None:
        """Closes the file; a replacing one takes its place now."""
        if self._stream is not None:
            self._stream.close()
        if self._part is not None and self.out is not None:
            os.replace(self._part, self.out)

    def finish(self) -> None:
        """Closes the file and ends the process with code 1 if any input failed."""
        self.close()
        if self.failed:
            sys.exit(1)

    def _write(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError as error:
            what = f"`{self.out}` cannot be written: {error.strerror}"
            raise VlrtError(what, "free some space and run again") from None


def to_json(value: object) -> str:
    """One line of JSON in UTF-8; with escapes where a file name holds bytes that are none."""
    line = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if _SURROGATE.search(line) else line


def _earlier(out: Path) -> tuple[dict[str, str], bool]:
    """Lines with results by image, and whether the file holds nothing else."""
    _refuse_special(out)
    foreign = VlrtError(f"`{out}` is not a file of results", "choose another with --out; it was left as it is")
    lines = out.read_bytes().split(b"\n")
    kept: dict[str, str] = {}
    whole = not lines[-1]
    if not whole and not (lines[-1].startswith(_START) or _START.startswith(lines[-1])):
        raise foreign  # only what an interrupted run may have left is cut off
    for line in lines[:-1]:
        try:
            value = json.loads(line)
            failed, image = "error" in value, value["image"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise foreign from None
        if not isinstance(image, str):
            raise foreign
        if failed or image in kept:
            whole = False
        if not failed:
            kept[image] = line.decode("utf-8") + "\n"
    return kept, whole


def _refuse_special(out: Path) -> None:
    if out.exists() and not out.is_file():
        raise VlrtError(f"`{out}` is not a regular file", "choose another with --out, or use --json")


@contextlib.contextmanager
def _written_whole(target: Path) -> Iterator[io.TextIOWrapper]:
    part = target.with_name(f".{target.name}.part")
    try:
        with open(part, "w", encoding="utf-8") as stream:
            yield stream
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


class Progress:
    """How far a run over many inputs is, on standard error: one moving line on a terminal, else one line in a while."""

    def __init__(self, total: int, what: str) -> None:
        self.total = total
        self.what = what
        self._started = self._shown = time.monotonic()
        self._skipped: int | None = None
        self._live = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        """Told how many inputs are done; the first call says how many were done before."""
        now = time.monotonic()
        finished = done >= self.total
        if self._skipped is None:
            self._skipped = done
            if finished:
                return
        if self.total < 2 or (not finished and now - self._shown < (0.1 if self._live else 10)):
            return
        if finished and not self._live and now - self._started < 10:
            return
        self._shown = now
        rate = (done - self._skipped) / max(now - self._started, 1e-9)
        left = f", {_clock((self.total - done) / rate)} left" if rate and not finished else ""
        line = f"{done}/{self.total} {self.what}, {rate:.1f}/s{left}"
        # The cursor goes back to the start, so that an error does not begin behind the line but takes its place.
        click.echo(f"{line:<60}\r" if self._live and not finished else line, err=True, nl=finished or not self._live)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
