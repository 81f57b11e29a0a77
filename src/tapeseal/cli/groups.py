"""Groups of commands, each of which is loaded when it is called."""

import importlib
from collections.abc import Mapping
from typing import ClassVar

import click


class LazyGroup(click.Group):
    """A group whose --help loads none of its commands; a subclass names them."""

    commands_by_name: ClassVar[Mapping[str, tuple[str, str]]]
    """By the name of the command: its module in tapeseal.cli, and what it does. In the module it is the command's name,
    with `_` for `-`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name, None where there is none."""
        if cmd_name not in self.commands_by_name:
            return None
        module = importlib.import_module(f"tapeseal.cli.{self.commands_by_name[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands of --help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.commands_by_name.items()])
