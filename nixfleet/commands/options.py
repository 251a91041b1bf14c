"""Options and parameter types that several commands share, each with one variable and one configuration key."""

import enum
import getpass
import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from evidence.documents import is_channel, is_host_name
from nixfleet.clock import parse_duration_s, wall_now
from nixfleet.errors import MissingSettingError
from nixfleet.release.description import base_name
from state_machine.values import WallMs, is_closure
from wire.timestamps import TimestampError, parse_rfc3339

Given = TypeVar("Given", Path, str)

FILE = click.Path(path_type=Path, dir_okay=False)
DIRECTORY = click.Path(path_type=Path, file_okay=False)


class InstantType(click.ParamType[WallMs]):
    """An RFC 3339 timestamp."""

    name = "RFC3339"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> WallMs:
        """UTC milliseconds, or a usage error."""
        if isinstance(value, int):
            return WallMs(value)
        try:
            return parse_rfc3339(value)
        except TimestampError as error:
            self.fail(str(error), param, ctx)


class DurationType(click.ParamType[int]):
    """A length of time; a bare number is seconds."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Whole seconds, or a usage error."""
        try:
            return parse_duration_s(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class MemberType(click.Choice[Any]):
    """One member of a `StrEnum`, given by its value (click would take the Python name)."""

    def __init__(self, members: type[enum.StrEnum]) -> None:
        super().__init__([member.value for member in members])
        self.members = members

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> enum.StrEnum:
        """The member, or a usage error."""
        return self.members(super().convert(value, param, ctx))


class KeyType(click.ParamType[str]):
    """A key to sign with, by the name that `signing.open_signer` takes; completed as a file."""

    name = "KEY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself: what is wrong with it is found when it is opened."""
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Files: the other forms are typed."""
        return [CompletionItem(incomplete, type="file")]


class CheckedType(click.ParamType[str]):
    """Text of one form, which `fits` knows."""

    def __init__(self, name: str, fits: Callable[[str], bool], form: str) -> None:
        self.name, self._fits, self._form = name, fits, form

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself, or a usage error."""
        text = str(value)
        if not self._fits(text):
            self.fail(f"{text[:80]!r} is not {self._form}", param, ctx)
        return text


def _is_server_name(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return is_host_name(text)
    return True


HOST = CheckedType("HOST", is_host_name, "a host name: letters, digits, dots and inner dashes")
SERVER_NAME = CheckedType("NAME", _is_server_name, "a host name or an address")
CHANNEL = CheckedType("CHANNEL", is_channel, "a channel's name")
CLOSURE = CheckedType("CLOSURE", lambda text: is_closure(base_name(text)), "a store path, nor the base name of one")
COMMIT = CheckedType(
    "COMMIT", lambda text: re.fullmatch("[0-9a-f]{1,64}", text) is not None, "a commit in hex, as git writes it"
)
CERTIFICATE_NAME = CheckedType(
    "NAME", lambda text: 0 < len(text) <= 64 and text.isprintable(), "a name of 1 to 64 printable characters"
)
CACHE_NAME = CheckedType(
    "NAME", lambda text: re.fullmatch("[A-Za-z0-9._-]{1,128}", text) is not None, "letters, digits, dots and dashes"
)
DAYS = click.IntRange(min=1, max=36_500)

INSTANT = InstantType()
KEY = KeyType()
DURATION = DurationType()

as_json = click.option("--json", "as_json", is_flag=True, help="Write one JSON document instead of text.")

trust_file = click.option(
    "--trust-file", type=FILE, envvar="NIXFLEET_TRUST_FILE", show_envvar=True, help="The trust roots, trust.json."
)

ci_key = click.option(
    "--ci-key",
    type=KEY,
    envvar="NIXFLEET_CI_KEY",
    show_envvar=True,
    help="The CI release key: a private key file (ed25519 or P-256; PEM or OpenSSH's format), agent:FILE.pub or "
    "agent:SHA256:... for a key in ssh-agent, or command:WORDS for one that a command signs with.",
)

org_root_key = click.option(
    "--org-root-key",
    type=KEY,
    envvar="NIXFLEET_ORG_ROOT_KEY",
    show_envvar=True,
    help="The org root's private key, given as --ci-key is.",
)

releases_dir = click.option(
    "--releases-dir",
    type=DIRECTORY,
    default=Path("releases"),
    envvar="NIXFLEET_RELEASES_DIR",
    show_envvar=True,
    help="The directory where signed files are published, without --to.",
)


now = click.option(
    "--now", type=INSTANT, metavar="RFC3339", help="Judge as if it were this instant.  [default: this machine's clock]"
)


def required(value: Given | None, flag: str, what: str) -> Given:
    """The value of a shared option that this command needs.

    Raises:
        MissingSettingError: it was given nowhere.
    """
    if value is None:
        variable = "NIXFLEET_" + flag.removeprefix("--").replace("-", "_").upper()
        raise MissingSettingError(flag=flag, variable=variable, what=what)
    return value


def user() -> str:
    """Who runs this, for the notes on signed lists."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number that has no name.
        return f"uid {os.getuid()}"


def instant(given: WallMs | None) -> WallMs:
    """The given instant, or now."""
    return wall_now() if given is None else given
