"""Why a command stopped. Two roots: exit status 1 for what went wrong, 2 for what was asked or configured wrongly.

Every message is one line (or one line and a list) and names the fix; `nixfleet.__main__` prints it without a traceback.
"""

from pathlib import Path
from typing import ClassVar

import attrs


class StoppedError(Exception):
    """The command could not do what it was asked to."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(StoppedError):
    """A flag, an environment variable, the configuration file or an input file must change first."""

    exit_code: ClassVar[int] = 2


@attrs.frozen(kw_only=True)
class NotTextError(ConfigurationError):
    """A word of the command line, or a variable, that is not UTF-8."""

    found: str

    def __str__(self) -> str:
        return f"{self.found[:80]!r} is not text in UTF-8: write it anew"


@attrs.frozen(kw_only=True)
class MissingSettingError(ConfigurationError):
    """A setting that the command cannot do without was given nowhere."""

    flag: str
    variable: str
    what: str

    def __str__(self) -> str:
        key = self.flag.removeprefix("--").replace("-", "_")
        return (
            f"{self.what} is not set: give {self.flag}, set {self.variable}, or put `{key}` into the configuration file"
        )


@attrs.frozen(kw_only=True)
class UnreadableFileError(ConfigurationError):
    """A file the command was pointed at cannot be read."""

    path: Path
    what: str
    cause: str

    def __str__(self) -> str:
        return f"cannot read the {self.what} {self.path}: {self.cause}"


@attrs.frozen(kw_only=True)
class NoDirectoryError(StoppedError):
    """A directory that is needed is not there and cannot be made."""

    path: Path
    what: str
    cause: str

    def __str__(self) -> str:
        return f"{self.path} cannot be made for {self.what} ({self.cause}): name another place"


@attrs.frozen(kw_only=True)
class ExistsError(StoppedError):
    """Something is in the way that must not be overwritten."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path} exists and is never overwritten: name another place for {self.what}, or move it away first"
