"""One side of a comparison as a process: started, asked point by point, and ended."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from vlrt.benchmark_job import Point, SkippedError
from vlrt.errors import VlrtError


@dataclass
class Worker:
    """One side's process, and what it was measured to take.

    Args:
        load, first: seconds until its model was there, and from its start to its first result.
        seconds, results: by point.
    """

    name: str
    process: subprocess.Popen[str]
    errors: IO[str]
    load: float = 0.0
    first: float = 0.0
    seconds: dict[Point, list[float]] = field(default_factory=dict)
    results: dict[Point, list[Any]] = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Worker:
        """Starts a side and waits for its first result.

        Raises:
            SkippedError: it says that it cannot take part.
            VlrtError: it failed.
        """
        started = time.perf_counter()
        # Not a pipe: one that nobody reads fills up, and the side would stop in the middle of a run.
        errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by `close`
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=dict(environment))
        worker = cls(name, process, errors)
        try:
            said = worker.read()
            if "skipped" in said:
                raise SkippedError(str(said["skipped"]))
            worker.load = float(said["load"])
            worker.results[Point()] = worker.ask(Point())["result"]
        except BaseException:
            worker.close()
            raise
        worker.first = time.perf_counter() - started
        return worker

    def read(self) -> dict[str, Any]:
        """The next answer.

        Raises:
            VlrtError: the process ended.
        """
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise VlrtError(f"`{self.name}` failed: {reason(self.errors.read())}")
        return dict(json.loads(line))

    def ask(self, point: Point | None) -> dict[str, Any]:
        """The answer to a point; to none, what the side says of itself when it ends."""
        if self.process.stdin is None:
            raise VlrtError(f"`{self.name}` cannot be asked")
        self.process.stdin.write(json.dumps(asdict(point) if point else {}) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """Ends the process, if it has not ended."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def reason(errors: str) -> str:
    """The last line that a process wrote to its standard error."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ")[:300] if lines else "it ended without a word"
