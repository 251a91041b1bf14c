"""Why a run of the updater stopped. The exit statuses are the command's (`nixfleet update --help`)."""

from pathlib import Path
from typing import ClassVar

import attrs

from nixfleet.errors import StoppedError


class UpdateError(StoppedError):
    """Git, nix or the network would not: nothing was merged."""

    exit_code: ClassVar[int] = 3


@attrs.frozen(kw_only=True)
class GitError(UpdateError):
    """A git command failed. `said` is the end of what it said."""

    words: tuple[str, ...]
    said: str

    def __str__(self) -> str:
        return f"git {' '.join(self.words)}: {self.said or 'it failed and said nothing'}"


@attrs.frozen(kw_only=True)
class NoRepositoryError(UpdateError):
    """What is to be updated is in no repository that git would use."""

    exit_code: ClassVar[int] = 2
    path: Path
    said: str

    def __str__(self) -> str:
        return f"{self.path} is in no repository that git can use ({self.said}): name one with --repo-path"


@attrs.frozen(kw_only=True)
class FlakeError(UpdateError):
    """The flake cannot be updated or read."""

    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.what}: {self.said or 'nix failed and said nothing'}"


@attrs.frozen(kw_only=True)
class DiskError(UpdateError):
    """A file that a run needs cannot be written or read."""

    path: str
    cause: str

    def __str__(self) -> str:
        return f"{self.path or 'a file'}: {self.cause}: make room, or let this user write there"

    @classmethod
    def of(cls, error: OSError) -> "DiskError":
        """What the kernel said."""
        return cls(path=str(error.filename or ""), cause=error.strerror or str(error))


@attrs.frozen(kw_only=True)
class MovedError(UpdateError):
    """The main branch moved on the remote, again and again, while this run was building."""

    branch: str
    times: int

    def __str__(self) -> str:
        return f"{self.branch} moved {self.times} times while every system was built: run again when it is quieter"


@attrs.frozen(kw_only=True)
class LockedError(StoppedError):
    """Another run works on this repository."""

    exit_code: ClassVar[int] = 4
    path: Path

    def __str__(self) -> str:
        return f"another update of this repository is running (it holds {self.path}): wait for it, or stop it"
