"""The settings that lead to builders, as options of every command that asks some."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import click
from click.core import ParameterSource

from messaging.subjects import is_prefix
from nixfleet.builder.builders import Builders, builders_of
from nixfleet.builder.messages import is_repository
from nixfleet.commands import options
from nixfleet.errors import ConfigurationError, MissingSettingError

_KEYS: Final[Mapping[str, str]] = {
    "nats_url": "url",
    "nats_nkey_file": "nkey-file",
    "nats_credentials_file": "credentials-file",
    "nats_token_file": "token-file",
    "nats_ca_cert": "ca-cert",
    "nats_prefix": "prefix",
    "repo": "repository",
}
"""Options, and what the same is called in a table `nats` of a file."""

_OPTIONS: Final = (
    click.option(
        "--nats-url",
        envvar="NIXFLEET_NATS_URL",
        show_envvar=True,
        help="The NATS server where builders listen and news is told: tls://HOST:4222.",
    ),
    click.option(
        "--nats-nkey-file",
        type=options.FILE,
        envvar="NIXFLEET_NATS_NKEY_FILE",
        show_envvar=True,
        help="The seed of an NKey that the NATS server knows.",
    ),
    click.option(
        "--nats-credentials-file",
        type=options.FILE,
        envvar="NIXFLEET_NATS_CREDENTIALS_FILE",
        show_envvar=True,
        help="Credentials for the NATS server, as `nsc` writes them.",
    ),
    click.option(
        "--nats-token-file",
        type=options.FILE,
        envvar="NIXFLEET_NATS_TOKEN_FILE",
        show_envvar=True,
        help="A token for the NATS server.",
    ),
    click.option(
        "--nats-ca-cert",
        type=options.FILE,
        envvar="NIXFLEET_NATS_CA_CERT",
        show_envvar=True,
        help="Who signed the NATS server's certificate.  [default: the system's authorities]",
    ),
    click.option(
        "--nats-prefix",
        type=options.CheckedType("PREFIX", is_prefix, "words of letters, digits, `_` and `-` with dots between"),
        envvar="NIXFLEET_NATS_PREFIX",
        show_envvar=True,
        help="What the builders' subjects begin with.  [default: build]",
    ),
    click.option(
        "--repo",
        type=options.CheckedType("NAME", is_repository, "the name of a repository: letters, digits, `_` and `-`"),
        envvar="NIXFLEET_REPO",
        show_envvar=True,
        help="What the builders call the repository.  [default: the only one they have]",
    ),
)

SERVER: Final = {name: (key, option) for (name, key), option in zip(list(_KEYS.items())[:5], _OPTIONS, strict=False)}
"""The options that lead to the server alone: by name, what each is called in a table, and the option."""


class NatsOptionsError(ConfigurationError):
    """The options name no server that could be used."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(f"--nats-url and what belongs to it: {'; '.join(problems)}")


def with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options, as they are."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def to_builders(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options and hand them to the command as one `builders`."""

    @functools.wraps(command)
    def with_builders(*args: Any, **flags: Any) -> Any:
        given = taken(flags)
        return command(*args, builders=named(given), **flags)

    return with_options(with_builders)


def to_builders_if_wanted(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a command whose option `builder` says whether there are any: None where it is not `nats`."""

    @functools.wraps(command)
    def with_builders(*args: Any, builder: str, **flags: Any) -> Any:
        given = taken(flags)
        return command(*args, builders=named(given) if builder == "nats" else None, **flags)

    return with_options(with_builders)


def taken(flags: dict[str, Any]) -> dict[str, str]:
    """Take these options out of what a command was given: a table `nats`."""
    found = {key: flags.pop(name, None) for name, key in _KEYS.items()}
    return {key: str(value) for key, value in found.items() if value is not None}


def is_from_file(key: str) -> bool:
    """What this key of such a table says is said by the configuration file, which flags and variables beat."""
    [name] = [name for name, known in _KEYS.items() if known == key]
    return click.get_current_context().get_parameter_source(name) is ParameterSource.DEFAULT_MAP


def named(given: Mapping[str, str]) -> Builders:
    """The builders that the options name.

    Raises:
        MissingSettingError, NatsOptionsError: they name none.
    """
    if not given.get("url"):
        raise MissingSettingError(
            flag="--nats-url", variable="NIXFLEET_NATS_URL", what="the address of the NATS server"
        )
    problems: list[str] = []
    builders = builders_of(given, problems, where="")
    if builders is None:
        raise NatsOptionsError(problems)
    return builders
