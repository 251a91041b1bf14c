"""Files written whole or not at all: a reader sees the old content or the new, never a part."""

import contextlib
import errno
import io
import os
import secrets
import select
from pathlib import Path
from typing import Final

from evidence.regular_files import read_whole
from nixfleet.errors import ExistsError, UnreadableFileError

LIMIT: Final = 8 * 1024 * 1024
"""No file that people or these programs write is longer, a journal export aside."""

_PIPE_SILENCE_S: Final = 120
"""Somebody may have to type a passphrase at the other end."""

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


def read_bytes(path: Path, what: str, limit: int = LIMIT) -> bytes:
    """The content of `path`. `what` names the file's role in the error.

    A pipe that has a writer is read too: shells make one for `--ci-key <(age -d ci.age)`.

    Raises:
        UnreadableFileError: it is missing, no file, longer than `limit` bytes, or may not be read.
    """
    try:
        return _read_pipe(path, limit) if path.is_fifo() else read_whole(path, limit)
    except OSError as error:
        raise UnreadableFileError(path=path, what=what, cause=error.strerror or str(error)) from error


def _read_pipe(path: Path, limit: int) -> bytes:
    data = bytearray()
    # Opened so, a pipe without a writer is at its end at once; with one, it is waited for.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as pipe:
        while len(data) <= limit:
            chunk = pipe.read(65_536)
            if chunk is None:  # there is a writer, who has nothing to say yet
                if not select.select([pipe], [], [], _PIPE_SILENCE_S)[0]:
                    raise OSError(errno.ETIMEDOUT, f"it is a pipe that was silent for {_PIPE_SILENCE_S} s")
            elif chunk:
                data += chunk
            else:
                break
    if not data:
        raise OSError(errno.EPIPE, "it is a pipe that nobody writes to")
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes")
    return bytes(data)


def create_file(path: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Write a file that must not exist yet, synced to the disk.

    Raises:
        ExistsError: something of that name is there.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise ExistsError(path=path, what="the file") from error
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            # The umask may have taken bits away, and a secret's mode must not depend on it.
            os.fchmod(descriptor, mode)
            _write_all(file, content)
            os.fsync(descriptor)
    except OSError as error:
        # The kernel does not say which file the disk was too full for.
        error.filename = str(path)
        raise


def _write_all(file: io.FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def replace_file(path: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Write `content` under a temporary name beside `path`, sync it, rename it into place."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        create_file(temporary, content, mode)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a rename is only certain once its directory is synced."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
