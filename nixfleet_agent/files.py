"""Files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path

from evidence.regular_files import read_start


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write `data` so that a reader, or a boot after a power cut, sees the old file or the new one.

    Raises:
        OSError: as the file system says; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_limited(path: Path, limit: int) -> bytes | None:
    """At most `limit` + 1 bytes of the file (so that a longer one is seen to be), or None when there is none.

    Raises:
        OSError: as `evidence.regular_files.open_regular`.
    """
    try:
        return read_start(path, limit)
    except FileNotFoundError:
        return None
