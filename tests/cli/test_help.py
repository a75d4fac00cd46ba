"""Every command explains itself, and every option has a help text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import vlrt
from vlrt import cli

Run = Callable[..., Any]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield (*path, name), found


EVERY = list(commands(cli.root))


@pytest.mark.parametrize(("path", "found"), EVERY, ids=[" ".join(path) or "vlrt" for path, _ in EVERY])
def test_help(command: Run, path: tuple[str, ...], found: click.Command) -> None:
    printed = command(*path, "--help")
    assert printed.code == 0
    assert printed.err == ""
    assert printed.out.startswith(f"Usage: {' '.join(('vlrt', *path))} ")
    assert found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path}: {parameter.name} has no help"
            assert parameter.opts[0] in printed.out


def test_the_table_says_what_the_commands_say() -> None:
    """The line of a command that is not imported yet is a copy of its own short help."""
    for path, found in EVERY:
        if path and not isinstance(found, click.Group):
            group = next(other for name, other in EVERY if name == path[:-1])
            assert isinstance(group, cli.LazyGroup)
            assert group.table[path[-1]][1] == found.short_help, path


def test_version(command: Run) -> None:
    assert command("--version").out == f"vlrt, version {vlrt.__version__}\n"


def test_without_arguments_the_help_is_shown(command: Run) -> None:
    for path in ((), ("run",)):
        found = command(*path)
        assert found.code == 2
        assert "Commands:" in found.err
        assert "error" not in found.err


def test_unknown_commands_and_tasks(command: Run) -> None:
    command("paint").failed(2, "no such command 'paint'", "vlrt --help")
    command("run", "paint").failed(2, "no such command 'paint'", "vlrt run --help")


def test_a_reader_that_goes_away_is_no_error(photographs: Path) -> None:
    """As `vlrt models | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", "from vlrt.cli import main; main(['models'])"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_terminal_without_our_letters() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from vlrt.cli import main; main(['models'])"],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "shift_jis"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert b"\\xb7" in done.stdout
