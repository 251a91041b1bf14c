"""Wait for the lock that NixOS switches hold, so that an administrator's switch is never raced.

A lock that cannot be examined counts as held: failing open would be the race this is here to prevent.
"""

import errno
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from nixfleet_agent.activation.errors import LockError
from nixfleet_agent.activation.polling import comes_true


@asynccontextmanager
async def unheld(path: str, *, wait_s: float, hold: bool) -> AsyncIterator[bool]:
    """Wait at most `wait_s` for nobody to hold the lock; yields whether that came true.

    With `hold` it is kept, exclusively, until the block ends. Without, it was merely seen free: the switch that follows
    takes it itself, and one that then finds it taken says so.

    Raises `LockError` when the lock file exists and cannot be opened.
    """
    descriptor = await _free(path, wait_s=wait_s, exclusive=hold)
    try:
        if descriptor is not None and not hold:
            os.close(descriptor)
            descriptor = None
            yield True
        else:
            yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


async def _free(path: str, *, wait_s: float, exclusive: bool) -> int | None:
    taken: list[int] = []

    async def free() -> bool:
        await trio.lowlevel.checkpoint()
        if (descriptor := _try_lock(path, exclusive=exclusive)) is not None:
            taken.append(descriptor)
        return bool(taken)

    await comes_true(free, within_s=wait_s)
    return taken[0] if taken else None


def _try_lock(path: str, *, exclusive: bool) -> int | None:
    """A descriptor that holds the lock, or None when somebody else does."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LockError(path=path, cause=error.strerror or str(error)) from error
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise LockError(path=path, cause=error.strerror or str(error)) from error
    return descriptor
