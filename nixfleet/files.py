"""Files written whole or not at all: a reader sees the old content or the new, never a part."""

import contextlib
import io
import os
import secrets
from pathlib import Path
from typing import Final

from nixfleet.errors import ExistsError, UnreadableFileError

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


def read_bytes(path: Path, what: str) -> bytes:
    """The content of `path`. `what` names the file's role in the error.

    Raises:
        UnreadableFileError: it is missing or may not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(path=path, what=what, cause=error.strerror or str(error)) from error


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
