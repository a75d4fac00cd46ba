"""The command line, run in this process: what it printed and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from vlrt import cli


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Args:
        code: exit code.
        out, err: what it printed.
    """

    code: int
    out: str
    err: str

    def failed(self, code: int, *words: str) -> None:
        """Asserts that one line, and perhaps one hint, say what went wrong."""
        assert self.code == code, self
        lines = self.err.splitlines()
        assert lines[0].startswith("error: "), self
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), self
        for word in words:
            assert word in self.err, self


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `vlrt` with arguments; a traceback fails the test."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Outcome(code, printed.out, printed.err)

    return run
