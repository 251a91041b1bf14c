"""One writer: an advisory lock beside the journal that ends with the process that holds it."""

import fcntl
import os
from pathlib import Path

from nixfleet_agent.journal.errors import JournalBusyError, write_error


def lock_path(path: Path) -> Path:
    """The lock file of the journal at `path`. It stays when the lock is released; only the lock counts."""
    return path.with_name(f"{path.name}.lock")


def take_lock(path: Path) -> int:
    """Lock the journal at `path` for this process; the descriptor holds the lock until it is closed.

    Raises:
        JournalBusyError: another process holds it.
        JournalWriteError: the lock file cannot be made.
    """
    try:
        descriptor = os.open(lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        _claim(descriptor, path)
    except BaseException:
        # Kept open it would hold the lock: against this very process, which tries again or goes on without the journal.
        os.close(descriptor)
        raise
    return descriptor


def _claim(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JournalBusyError(path=path, pid=_holder(descriptor)) from error
    os.ftruncate(descriptor, 0)
    try:
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise write_error(path, error) from error


def _holder(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else 0
