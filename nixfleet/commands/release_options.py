"""The options of `nixfleet release`, in groups: what is released, how a flake's hosts are built, what is shown."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from nixfleet.commands import options
from nixfleet.release.example import EXAMPLE
from nixfleet.update.instance import BUILDERS

Command = TypeVar("Command", bound=Callable[..., Any])


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = dict(value.partition("=")[::2] for value in values)
    if len(pairs) != len(values) or not all(host and path for host, path in pairs.items()):
        raise click.BadParameter("write --closure HOST=STORE_PATH, once for each host", ctx, param)
    return pairs


def _reference(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A word that Nix takes for a reference, and not for a flag of its own."""
    if value is not None and (value.startswith("-") or not value.isprintable()):
        raise click.BadParameter("write a flake as Nix names one: a path or a URL", ctx, param)
    return value


def about_flakes(ctx: click.Context) -> None:
    """Refuse flags that would be about a flake where there is none.

    Raises:
        UsageError: one of them was given on the command line.
    """
    for option in ctx.command.params:
        given = ctx.get_parameter_source(str(option.name)) is click.core.ParameterSource.COMMANDLINE
        if given and option.name in _ABOUT_FLAKES:
            raise click.UsageError(f"{option.opts[0]} is about the hosts of a flake: name it with --flake")


_ABOUT_FLAKES = frozenset({"build", "builder", "jobs", "build_timeout"})


def _show_example(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(EXAMPLE, nl=False)
        ctx.exit()


def _group(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


intent = _group(
    click.argument("description", type=options.FILE, required=False),
    click.option(
        "--closure",
        "closures",
        multiple=True,
        callback=_pairs,
        metavar="HOST=STORE_PATH",
        help="What a host is to run, instead of what the description says; may be repeated.",
    ),
    click.option(
        "--commit",
        type=options.COMMIT,
        help="The commit, in hex, that rollouts are named after.  [default: the flake's revision, or git's HEAD, else "
        "a hash]",
    ),
    click.option("--new-rollout", is_flag=True, help="Open new rollouts even when nothing changes for any host."),
    click.option("--refresh", is_flag=True, help="Sign what is published once more, unchanged; needs no description."),
)

flake = _group(
    click.option(
        "--flake",
        metavar="REF[#ATTRIBUTE]",
        callback=_reference,
        help="Take the description from a flake, as Nix names one, and build its hosts.  [attribute: fleet]",
    ),
    click.option("--build/--no-build", default=True, help="Build hosts, or ask only what their closures would be."),
    click.option(
        "--builder",
        type=click.Choice(BUILDERS),
        default=BUILDERS[0],
        help="Who builds: this machine, or builders that are asked over NATS.",
    ),
    click.option("--jobs", type=click.IntRange(1, 256), default=2, help="Hosts built at once."),
    click.option("--build-timeout", type=options.DURATION, default="4h", help="Deadline of a build."),
)

shown = _group(
    click.option(
        "--changes/--no-changes",
        default=None,
        help="Show which packages change on each host, where both closures are here.  [default: on a terminal and "
        "with --json]",
    ),
    click.option("--dry-run", is_flag=True, help="Check, show what would change, write nothing; needs no key."),
    options.as_json,
    click.option(
        "--example",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_example,
        help="Print a description to begin from, with every member explained, and stop.",
    ),
)
