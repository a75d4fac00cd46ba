"""The `vlrt` command: a table of lazily imported commands, and errors made for people."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import click

import vlrt
from vlrt.errors import VlrtError

COMMANDS = {
    "run": ("vlrt.commands.run:run", "Caption, match, search, classify or embed photographs."),
    "models": ("vlrt.commands.models:models", "List the models we know and which are here."),
    "info": ("vlrt.commands.info:info", "Show versions, engines and devices; name what is wrong."),
    "inspect": ("vlrt.commands.inspect:inspect", "Show what a bundle holds, and its parity certificate."),
    "verify": ("vlrt.commands.verify:verify", "Check a bundle's files and compute its goldens again."),
    "bench": ("vlrt.commands.bench:bench", "Measure a task: latency, throughput, memory."),
    "export": ("vlrt_export.command:export", "Trace a model to a bundle and prove it against torch."),
}
"""Command -> where it is, and its line in the help text. Named as strings: nothing is imported before it runs."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def __init__(self, table: dict[str, tuple[str, str]], help: str | None = None, name: str | None = None) -> None:  # noqa: A002 - click's name
        super().__init__(name=name, help=help)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, attribute = self.table[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the table without importing what it names."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])


root = LazyGroup(COMMANDS, help="On-device inference for vision-language models: no torch at inference.", name="vlrt")
click.version_option(vlrt.__version__, prog_name="vlrt")(root)


def main() -> None:
    """Runs the command line; mistakes become one line with a hint, never a traceback.

    Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted.
    """
    try:
        root.main(standalone_mode=False)
    except VlrtError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output went away (`vlrt … | head`); say nothing and let no later flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)
