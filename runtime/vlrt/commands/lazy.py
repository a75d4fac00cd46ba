"""Groups of commands that are imported when they are called, so that `--help` costs nothing."""

from __future__ import annotations

from importlib import import_module

import click


class LazyGroup(click.Group):
    """A group whose commands are named as strings.

    Args:
        table: command -> where it is (``module:attribute``), and its line in the help text.
    """

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
