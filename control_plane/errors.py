"""Why something was not done, by who has to act.

`ConfigurationError` ends the process with status 2 and one line. `RequestRefusedError` is an answer to one request:
guards and handlers raise it, the server turns it into its status and a JSON body. `StoreError` is the disk's fault;
requests that needed it are answered 503 and may be sent again.
"""

from collections.abc import Mapping
from pathlib import Path

import attrs

from state_machine.values import RolloutId


class ControlPlaneError(Exception):
    """The root of everything this package raises."""


class ConfigurationError(ControlPlaneError):
    """The process was started with something it cannot work with."""


@attrs.frozen(kw_only=True)
class UnreadableFileError(ConfigurationError):
    """A file named on the command line cannot be read or is not what it should be."""

    flag: str
    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.flag} {self.path}: {self.problem}"


@attrs.frozen(kw_only=True)
class MissingFlagError(ConfigurationError):
    """A flag is needed by what else was asked for."""

    flag: str
    because: str

    def __str__(self) -> str:
        variable = "NIXFLEET_CP_" + self.flag.removeprefix("--").replace("-", "_").upper()
        return f"{self.flag} is missing: {self.because}. Give it, or set {variable}"


@attrs.frozen(kw_only=True)
class BadFlagError(ConfigurationError):
    """A flag's value does not make sense."""

    flag: str
    value: str
    problem: str

    def __str__(self) -> str:
        # A password may stand before the @ of a URL.
        shown = self.value.rpartition("@")[2] if "://" in self.value else self.value
        plain = shown and shown.isprintable()
        return f"{self.flag} {shown[:200] if plain else repr(shown[:200])}: {self.problem}"


@attrs.frozen(kw_only=True)
class ConflictingFlagsError(ConfigurationError):
    """Two flags that cannot hold together."""

    flag: str
    other: str
    because: str

    def __str__(self) -> str:
        return f"{self.flag} and {self.other} cannot both hold: {self.because}. Leave one of them out"


@attrs.frozen(kw_only=True)
class NotTextError(ConfigurationError):
    """A word of the command line, or a variable, that is not UTF-8."""

    found: str

    def __str__(self) -> str:
        return f"{self.found[:80]!r} is not text in UTF-8: write it anew"


@attrs.frozen(kw_only=True)
class ListenError(ConfigurationError):
    """The address cannot be listened on."""

    flag: str
    address: str
    problem: str

    def __str__(self) -> str:
        return f"cannot listen on {self.address}: {self.problem}. Choose another address with {self.flag}"


class StoreError(ControlPlaneError):
    """The database could not do what it was asked to."""


@attrs.frozen(kw_only=True)
class NewerSchemaError(StoreError):
    """The database was written by a later version of this program. It is left untouched."""

    path: Path
    found: int
    known: int

    def __str__(self) -> str:
        return (
            f"{self.path} has schema {self.found}, this program knows {self.known}: "
            "it was written by a later version. Run that version, or give another --db-path"
        )


@attrs.frozen(kw_only=True)
class StoreUnavailableError(StoreError):
    """A write did not reach the disk; nothing of it happened."""

    problem: str

    def __str__(self) -> str:
        return f"the database cannot be written: {self.problem}"


@attrs.frozen(kw_only=True)
class DatabaseOpenError(StoreError):
    """The database file cannot be opened."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"cannot open the database {self.path}: {self.problem}. Check its directory, or give another --db-path"


class IssuanceError(ControlPlaneError):
    """A certificate cannot be issued for this request."""


@attrs.frozen(kw_only=True)
class BadRequestError(IssuanceError):
    """The certificate signing request is not one we can answer."""

    problem: str

    def __str__(self) -> str:
        return f"the certificate request {self.problem}"


@attrs.frozen(kw_only=True)
class UnknownRolloutError(ControlPlaneError):
    """Nothing is known of this rollout."""

    rollout_id: RolloutId

    def __str__(self) -> str:
        return f"rollout {self.rollout_id} is unknown here"


@attrs.frozen(kw_only=True)
class RequestRefusedError(ControlPlaneError):
    """The answer to a request that will not be done: its status and a `wire.messages.ErrorBody`.

    `reason` is a slug that programs may match, `error` a sentence for people.
    """

    status: int
    reason: str
    error: str
    want_seq: int | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.error}"
