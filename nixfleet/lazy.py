"""A command group that imports a command's module only when that command runs.

The group's own help and completion are answered from a table of names and one-line descriptions, so that
`nixfleet canonicalize` never pays for the HTTP client, the certificate library or the terminal toolkit of others.
"""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import attrs
import click
from click.shell_completion import CompletionItem


@attrs.frozen(kw_only=True)
class LazyCommand:
    """Where a command lives (`module:attribute`) and what the list of commands says of it."""

    where: str
    summary: str

    def load(self) -> click.Command:
        """Import and return it."""
        module, _, name = self.where.partition(":")
        command = getattr(importlib.import_module(module), name)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.where} is not a command")
        return command


class LazyGroup(click.Group):
    """A click group over a table of `LazyCommand`."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table, which is the order of a deployment."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None when there is none of that name."""
        known = self.lazy.get(cmd_name)
        return known.load() if known is not None else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in self.lazy.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name without importing one; options as every command completes them."""
        commands = [
            CompletionItem(name, help=command.summary)
            for name, command in self.lazy.items()
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a misspelt one is answered with the nearest name."""
        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.lazy, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f": one of {', '.join(self.lazy)}"
            ctx.fail(f"no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)
