"""The `vlrt` command: a table of lazily imported commands, and errors made for people."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import click

import vlrt
from vlrt.commands.lazy import LazyGroup
from vlrt.errors import VlrtError, VlrtNote, VlrtWarning

COMMANDS = {
    "run": ("vlrt.commands.run:run", "Caption, answer, match, search, classify, embed; paint."),
    "chat": ("vlrt.commands.chat:chat", "Ask one photograph question after question."),
    "models": ("vlrt.commands.models:models", "List the models we know and which are here."),
    "info": ("vlrt.commands.info:info", "Show versions, engines and devices; name what is wrong."),
    "inspect": ("vlrt.commands.inspect:inspect", "Show what a bundle holds, or how a picture was made."),
    "verify": ("vlrt.commands.verify:verify", "Check a bundle's files and compute its goldens again."),
    "bench": ("vlrt.commands.bench:bench", "Measure a task: latency, throughput, memory."),
    "export": ("vlrt_export.command:export", "Trace a model to a bundle and prove it against torch."),
}
"""Command -> where it is, and its line in the help text. Named as strings: nothing is imported before it runs."""

_ALARMS = hasattr(signal, "setitimer")

root = LazyGroup(COMMANDS, help="On-device inference for vision-language models: no torch at inference.", name="vlrt")
click.version_option(vlrt.__version__, prog_name="vlrt")(root)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; mistakes become one line with a hint, never a traceback.

    Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted, 143 terminated.

    Args:
        arguments: without the program's name; those of the process where `None`.
    """
    _tolerate_any_text()
    with _plain_warnings(), _orderly_termination():
        try:
            root.main(arguments, prog_name="vlrt", standalone_mode=False)
        except VlrtError as error:
            _fail(str(error), error.exit_code)
        except click.exceptions.Exit as exit_:
            sys.exit(exit_.exit_code)
        except click.ClickException as error:
            _fail_usage(error)
        except (click.Abort, KeyboardInterrupt):
            _fail("interrupted", 130)
        except BrokenPipeError:
            # The reader of our output went away (`vlrt … | head`); say nothing and let no later flush complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def _fail_usage(error: click.ClickException) -> None:
    """What click finds wrong with the arguments, in our form; a command without any shows its help as ever."""
    context = getattr(error, "ctx", None)
    if context is None or type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(error.exit_code)
    found = VlrtError(error.format_message().rstrip("."))
    _fail(f"{found.what[:1].lower()}{found.what[1:]}\nhint: {context.command_path} --help", error.exit_code)


def _tolerate_any_text() -> None:
    """File names may hold bytes, and terminals lack letters: print escapes then, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our own warnings become one line each; those of libraries stay as Python shows them."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, VlrtWarning):
                click.echo(f"{'note' if issubclass(category, VlrtNote) else 'warning'}: {message}", err=True)
            else:
                shown(message, category, *place, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", VlrtWarning)
        yield


@contextlib.contextmanager
def _orderly_termination() -> Iterator[None]:
    """Lets SIGTERM unwind the stack as an interrupt does, so that nothing half-written stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised: dict[signal.Signals, Callable[[], object]] = {signal.SIGTERM: lambda: sys.exit(128 + signal.SIGTERM)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raised[signal.SIGINT] = _interrupt
    before = {number: signal.signal(number, _outside_imports(act)) for number, act in raised.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _wake(0.0)


def _interrupt() -> None:
    raise KeyboardInterrupt


def _outside_imports(act: Callable[[], object]) -> Callable[[int, FrameType | None], None]:
    """A handler that acts as soon as the main thread is not in the import system.

    An exception that is raised there may be lost in a callback, or leave a lock taken that other threads wait for.
    """

    def handle(_: int, frame: FrameType | None) -> None:
        if _ALARMS and frame is not None and frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.signal(signal.SIGALRM, handle)
            _wake(0.01)
            return
        _wake(0.0)
        act()

    return handle


def _wake(seconds: float) -> None:
    """Sets the alarm, or with 0 takes it back; it rings again and again, for a single one may come just before a call
    that blocks, which would not notice it."""
    if _ALARMS:
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.05)
