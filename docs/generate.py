"""Write the pages that are made from the code; with `--check`, only say which of them are out of date.

docs/reference-cli.md and the manual pages in docs/man come from the programs' own tables of options and commands, so
they cannot tell another story than `--help` does; docs/reference-nixos.md and docs/reference-darwin.md come from the
modules, the drawing in docs/lifecycle.md from the lifecycle table. Nothing in them depends on the machine or the width
of a terminal, but the pages about modules are only made where nix is installed.
"""

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
import manpages
import module_options

from control_plane.cli import PREFIX
from control_plane.cli import cli as control_plane
from nixfleet.cli import cli as nixfleet
from nixfleet_agent.cli import cli as agent
from nixfleet_agent.options import BY_NAME
from state_machine import diagram

REFERENCE: Final = Path(__file__).with_name("reference-cli.md")
LIFECYCLE: Final = Path(__file__).with_name("lifecycle.md")

_HEAD: Final = """\
# Command line reference

Written by `docs/generate.py` from the programs themselves; edit the options there, not here. A flag beats its
environment variable, which (for `nixfleet`) beats the configuration file, which beats the default.

- [`nixfleet-agent`](#nixfleet-agent): the daemon of a host, and the commands of the person at that host
- [`nixfleet-control-plane`](#nixfleet-control-plane): the peer that the hosts talk to
- [`nixfleet`](#nixfleet): keys, tokens, releases, views and audits, for operators and CI
"""

_COLUMNS: Final = ("flag", "environment", "default", "meaning")


def reference() -> str:
    """The whole page."""
    roots = (("nixfleet-agent", agent, None), ("nixfleet-control-plane", control_plane, PREFIX))
    sections = [line for name, root, prefix in roots for line in _program(name, root, prefix)]
    return "\n".join([_HEAD, *sections, *_program("nixfleet", nixfleet, "NIXFLEET")]).rstrip() + "\n"


def _program(name: str, root: click.Command, prefix: str | None) -> Iterator[str]:
    context = click.Context(root, info_name=name, auto_envvar_prefix=prefix)
    for command_context in _walk(context):
        command = command_context.command
        level = "##" if command_context.parent is None else "###"
        yield f"{level} {command_context.command_path}\n"
        yield f"```\n{' '.join(command.get_usage(command_context).split()[1:])}\n```\n"
        yield f"{inspect.cleandoc(command.help or '')}\n"
        rows = [row for option in _options(command) if (row := _row(option, command_context))]
        if rows:
            yield _table(rows)


def _walk(context: click.Context) -> Iterator[click.Context]:
    """The command and all below it, in the order in which help lists them."""
    yield context
    command = context.command
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        yield from _walk(click.Context(child, info_name=name, parent=context))


def _options(command: click.Command) -> Iterator[click.Option]:
    yield from (option for option in command.params if isinstance(option, click.Option) and not option.hidden)


def _row(option: click.Option, context: click.Context) -> Sequence[str] | None:
    if option.name in ("help", "version"):
        return None
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    takes = "" if option.is_flag else f" {_metavar(option, context)}"
    return flags + takes, _environment(option, context), _default(option, context), _meaning(option)


def _metavar(option: click.Option, context: click.Context) -> str:
    choices = getattr(option.type, "choices", None)
    return "one of " + ", ".join(f"`{choice}`" for choice in choices) if choices else option.make_metavar(context)


def _environment(option: click.Option, context: click.Context) -> str:
    own = BY_NAME.get(option.name or "") if context.command is agent else None
    if own is not None:
        names: Sequence[str] = own.variables
    elif option.envvar:
        names = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar)
    elif context.auto_envvar_prefix and option.name and option.expose_value:
        names = [f"{context.auto_envvar_prefix}_{option.name.upper()}"]
    else:
        names = []
    return ", ".join(f"`{name}`" for name in names)


def _default(option: click.Option, context: click.Context) -> str:
    own = BY_NAME.get(option.name or "") if context.command is agent else None
    value: Any = own.default if own is not None else option.to_info_dict()["default"]
    if option.is_flag or value in (None, "", (), []):
        return ""
    return ", ".join(f"`{item}`" for item in (value if isinstance(value, list | tuple) else [value]))


def _meaning(option: click.Option) -> str:
    """The help text, without what has a column of its own."""
    text = (option.help or "").partition("  [env: ")[0]
    return f"{text} Required." if option.required else text.replace("  [required]", " Required.")


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Text that a table cell shows as it is."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _manuals() -> Iterator[tuple[Path, str]]:
    """The manual page of each program, and where it lies."""
    roots: dict[str, tuple[click.Command, str | None]] = {
        "nixfleet-agent": (agent, None),
        "nixfleet-control-plane": (control_plane, PREFIX),
        "nixfleet": (nixfleet, "NIXFLEET"),
    }
    for manual in manpages.MANUALS:
        root, prefix = roots[manual.program]
        contexts = list(_walk(click.Context(root, info_name=manual.program, auto_envvar_prefix=prefix)))
        tree = manpages.Tree(contexts=contexts, environment=_environment, default=_default, meaning=_meaning)
        yield manpages.path_of(manual), manpages.page(manual, tree)


def main() -> int:
    """Write the pages, or compare them; the exit status."""
    pages = {REFERENCE: reference(), LIFECYCLE: diagram.embedded(LIFECYCLE.read_text(encoding="utf-8"))}
    pages.update(_manuals())
    pages.update(module_options.pages())
    old = [path for path, page in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != page]
    if "--check" in sys.argv[1:]:
        for path in old:
            print(f"{path} is out of date; run `.venv/bin/python docs/generate.py`", file=sys.stderr)
        return 1 if old else 0
    for path in old:
        path.write_text(pages[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
