"""Where signed files are published, as options of every command that publishes some."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from nixfleet.commands import options
from nixfleet.release.pruning import KEEP_DAYS, Pruning
from nixfleet.release.target import Target
from nixfleet.release.targets.choice import Access, open_target, own_directory
from nixfleet.release.targets.directory import DirectoryTarget
from nixfleet.terminal import note

_PLACE = (
    click.option(
        "--to",
        metavar="TARGET",
        envvar="NIXFLEET_TO",
        show_envvar=True,
        help="Where signed files are published: a directory, git+URL#BRANCH, https://HOST/PREFIX or "
        "s3://BUCKET/PREFIX?endpoint=URL&region=NAME.  [default: the releases directory]",
    ),
    click.option(
        "--to-token-file",
        type=options.FILE,
        envvar="NIXFLEET_TO_TOKEN_FILE",
        show_envvar=True,
        help="A bearer token for https:// or a forge's token for git+https://.",
    ),
    click.option(
        "--to-credentials-file",
        type=options.FILE,
        envvar="NIXFLEET_TO_CREDENTIALS_FILE",
        show_envvar=True,
        help="Access keys for s3://, as AWS's tools have them.  [default: the AWS_* variables]",
    ),
    options.releases_dir,
)

_PRUNING = (
    click.option(
        "--keep",
        type=click.IntRange(min=1, max=1_000_000),
        help="Remove rollout manifests of all but this many of the newest releases.  [default: remove none]",
    ),
    click.option(
        "--keep-days",
        type=click.IntRange(min=1, max=36_500),
        default=KEEP_DAYS,
        help="With --keep: none that was signed in so many days is removed.",
    ),
)

if_due = click.option(
    "--if-due",
    is_flag=True,
    help="With --refresh: only when less than half of the shortest freshness window is left.",
)


def to_target(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options, and hand the command what they name as one `target`."""

    @functools.wraps(command)
    def with_target(
        *args: Any,
        to: str | None,
        to_token_file: Path | None,
        to_credentials_file: Path | None,
        releases_dir: Path,
        **kwargs: Any,
    ) -> None:
        place = (None, None, None) if _is_overruled(to) else (to, to_token_file, to_credentials_file)
        command(*args, target=_opened(*place, releases_dir), **kwargs)

    return _with(with_target, *_PLACE)


def _is_overruled(to: str | None) -> bool:
    """Whether the command line names a directory, and the environment or the configuration file another place.

    Raises:
        click.UsageError: the command line names both.
    """
    source = click.get_current_context().get_parameter_source
    if to is None or source("releases_dir") is not ParameterSource.COMMANDLINE:
        return False
    if source("to") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--to and --releases-dir name two places: give one of them")
    return True


def pruned(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options, and hand the command what they say as one `pruning`."""

    @functools.wraps(command)
    def with_pruning(*args: Any, keep: int | None, keep_days: int, **kwargs: Any) -> None:
        command(*args, pruning=Pruning(keep=keep, keep_days=keep_days), **kwargs)

    return _with(with_pruning, *_PRUNING)


def _with(
    command: Callable[..., None], *decorators: Callable[[Callable[..., None]], Callable[..., None]]
) -> Callable[..., None]:
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


def _opened(to: str | None, token: Path | None, credentials: Path | None, releases_dir: Path) -> Target:
    if to is None and (token is not None or credentials is not None):
        raise click.UsageError("--to-token-file and --to-credentials-file are for a target that --to names")
    access = Access(token_file=token, credentials_file=credentials)
    address = str(releases_dir) if to is None else to
    target = open_target(address, access)
    # A directory is this machine's, and what somebody restores there is theirs to restore.
    if isinstance(target, DirectoryTarget):
        return target
    from nixfleet.release.targets.remembered import remembered

    return remembered(target, address, own_directory(access.environment), note)
