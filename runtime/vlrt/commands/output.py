"""Where results go: lines for people, JSON lines for programs, a file that a later run resumes."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vlrt.errors import VlrtError


class ResultLines:
    """Prints results and appends them to a JSONL file, each line whole.

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
        self.out = out
        self._replaces: Path | None = None
        self.failed = 0
        self.done: set[str] = set()
        self._stream: io.TextIOWrapper | None = None
        if out is not None:
            try:
                if resume:
                    self._resume(out)
                else:
                    self._replaces = out.with_name(f".{out.name}.part")
                    self._stream = open(self._replaces, "w", encoding="utf-8")  # noqa: SIM115 - closed by `close`
            except OSError as error:
                raise VlrtError(f"`{out}` cannot be written: {error.strerror}", "choose another with --out") from None

    def _resume(self, out: Path) -> None:
        kept: list[str] = []
        if out.exists():
            lines = out.read_text("utf-8").splitlines(keepends=True)
            for number, line in enumerate(lines, 1):
                value = _parse(line, number == len(lines), out)
                if value is not None and "error" not in value:
                    kept.append(line)
                    self.done.add(value["image"])
        # Rewritten whole under another name, so that an interruption here loses nothing.
        temporary = out.with_name(f".{out.name}.part")
        temporary.write_text("".join(kept), "utf-8")
        os.replace(temporary, out)
        self._stream = open(out, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def result(self, value: Mapping[str, Any], text: str) -> None:
        """One result: `value` for programs, `text` for people."""
        line = json.dumps(value, ensure_ascii=False)
        self._write(line)
        if self.as_json:
            click.echo(line)
        elif self.out is None:
            click.echo(text)

    def failure(self, image: str, error: VlrtError | str) -> None:
        """One input that could not be done; the run goes on and ends with exit code 1."""
        what = error.what if isinstance(error, VlrtError) else error
        self.failed += 1
        line = json.dumps({"image": image, "error": what}, ensure_ascii=False)
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
        if self._replaces is not None and self.out is not None:
            os.replace(self._replaces, self.out)

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
            raise VlrtError(
                f"`{self.out}` cannot be written: {error.strerror}", "free some space and run again"
            ) from None


def _parse(line: str, last: bool, out: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
        if isinstance(value, dict) and isinstance(value.get("image"), str) and line.endswith("\n"):
            return value
    except ValueError:
        pass
    if last:
        return None  # an interrupted run may leave half a line
    raise VlrtError(f"`{out}` is not a file of results", "choose another with --out; it was left as it is")


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
        if self._skipped is None:
            self._skipped = done
        finished = done >= self.total
        if self.total < 2 or (not finished and now - self._shown < (0.1 if self._live else 10)):
            return
        if finished and not self._live and now - self._started < 10:
            return
        self._shown = now
        rate = (done - self._skipped) / max(now - self._started, 1e-9)
        left = f", {_clock((self.total - done) / rate)} left" if rate and not finished else ""
        line = f"{done}/{self.total} {self.what}, {rate:.1f}/s{left}"
        click.echo(f"\r{line:<60}" if self._live else line, err=True, nl=finished or not self._live)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
