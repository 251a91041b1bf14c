"""What can be wrong with the journal, one class per thing to do about it, and how SQLite's errors map to them."""

import enum
import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

import attrs

from nixfleet_agent.errors import AgentError


class JournalError(AgentError):
    """Root of everything the journal raises."""


@attrs.frozen(kw_only=True)
class NewerJournalError(JournalError):
    """A newer version of the agent wrote the file or something in it. It was not touched."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path} is of a newer agent: {self.problem}; run that agent, or move the file away to begin anew"


@attrs.frozen(kw_only=True)
class CorruptJournalError(JournalError):
    """The file is damaged, or no journal at all. Set it aside; never delete it."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.problem}; it must be set aside, never deleted"


@attrs.frozen(kw_only=True)
class ForeignJournalError(JournalError):
    """The newest entry is not by this host and this key, so nothing can be added that would verify."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path} belongs to somebody else: {self.problem}; restore the key, or set the file aside"


@attrs.frozen(kw_only=True)
class JournalBusyError(JournalError):
    """Another process writes this journal. `pid` is 0 when it did not say who it is."""

    path: Path
    pid: int

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid else "another process"
        return f"{self.path} is in use by {who}: stop that agent first"


@attrs.frozen(kw_only=True)
class UnreadableJournalError(JournalError):
    """The file cannot be read just now: absent, forbidden, or the medium fails."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path} cannot be read: {self.problem}"


@attrs.frozen(kw_only=True)
class UnwritableEventError(JournalError):
    """An event that has no signed form: a defect in whoever made it, since trying again cannot help."""

    kind: str
    problem: str

    def __str__(self) -> str:
        return f"a {self.kind} cannot be journaled: {self.problem}"


class WriteProblem(enum.StrEnum):
    """Why nothing could be written."""

    DISK_FULL = "disk-full"
    READ_ONLY = "read-only"
    BUSY = "busy"
    DAMAGED = "damaged"
    DEVICE = "device"


EXIT_STATUS: Final = {cause: 10 + place for place, cause in enumerate(WriteProblem)}
"""How a migration, which is a process of its own, tells its parent what went wrong."""

_REMEDIES: Final = {
    WriteProblem.DISK_FULL: "free some space on its file system",
    WriteProblem.READ_ONLY: "make its directory writable for the agent",
    WriteProblem.BUSY: "another program holds a lock on it",
    WriteProblem.DAMAGED: "restart the agent, which will say what is damaged",
    WriteProblem.DEVICE: "look at the kernel's log for the disk",
}


@attrs.frozen(kw_only=True)
class JournalWriteError(JournalError):
    """Nothing was committed; the journal is as it was, and a later attempt may succeed.

    `path` and `cause` are None when it was not tried at all, and `problem` says why.
    """

    problem: str
    path: Path | None = None
    cause: WriteProblem | None = None

    def __str__(self) -> str:
        if self.cause is None:
            return f"the journal cannot be written: {self.problem}"
        return f"{self.path} cannot be written ({self.cause}): {self.problem}; {_REMEDIES[self.cause]}"


_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR})
"""The last means that a query does not fit the file: its tables are not ours."""

_CAUSES: Final = {
    sqlite3.SQLITE_FULL: WriteProblem.DISK_FULL,
    sqlite3.SQLITE_READONLY: WriteProblem.READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: WriteProblem.READ_ONLY,
    sqlite3.SQLITE_PERM: WriteProblem.READ_ONLY,
    sqlite3.SQLITE_AUTH: WriteProblem.READ_ONLY,
    sqlite3.SQLITE_BUSY: WriteProblem.BUSY,
    sqlite3.SQLITE_LOCKED: WriteProblem.BUSY,
    sqlite3.SQLITE_CORRUPT: WriteProblem.DAMAGED,
    sqlite3.SQLITE_NOTADB: WriteProblem.DAMAGED,
}
_ERRNO_CAUSES: Final = {
    errno.ENOSPC: WriteProblem.DISK_FULL,
    errno.EDQUOT: WriteProblem.DISK_FULL,
    errno.EFBIG: WriteProblem.DISK_FULL,
    errno.EROFS: WriteProblem.READ_ONLY,
    errno.EACCES: WriteProblem.READ_ONLY,
    errno.EPERM: WriteProblem.READ_ONLY,
}


def write_error(path: Path, error: sqlite3.Error | OSError) -> JournalWriteError:
    """What a failed write means."""
    if isinstance(error, OSError):
        cause = _ERRNO_CAUSES.get(error.errno or 0, WriteProblem.DEVICE)
        return JournalWriteError(path=path, cause=cause, problem=(error.strerror or str(error)).lower())
    return JournalWriteError(path=path, cause=_cause(path, error), problem=str(error))


def read_error(path: Path, error: sqlite3.Error) -> CorruptJournalError | UnreadableJournalError:
    """What a failed read means."""
    if _primary(error) in _DAMAGE:
        return CorruptJournalError(path=path, problem=str(error))
    return UnreadableJournalError(path=path, problem=str(error))


def _cause(path: Path, error: sqlite3.Error) -> WriteProblem:
    cause = _CAUSES.get(_primary(error), WriteProblem.DEVICE)
    # SQLite reports a read-only remount and an exhausted quota as plain I/O errors.
    if cause is WriteProblem.DEVICE and not os.access(path.parent, os.W_OK):
        return WriteProblem.READ_ONLY
    return cause


def _primary(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF
