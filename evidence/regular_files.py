"""Read files that somebody named: only regular ones, and never more of them than asked for.

Opening a pipe waits for a writer that may never come, and `/dev/zero` has no end; a program that was pointed at one
by mistake must say so.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

_KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


_PORTION: Final = 4096


class NotAFileError(OSError):
    """Something else has this name; `strerror` says what."""


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to be read.

    Raises:
        NotAFileError: it is a pipe, a socket or a device.
        OSError: it is a directory, absent, or the operating system refuses.
    """
    descriptor, _ = _opened(path)
    return open(descriptor, "rb")


def _opened(path: str | Path) -> tuple[int, int]:
    """A descriptor, and the size."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise NotAFileError(errno.EINVAL, "it is a socket, not a file", str(path)) from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a special file")
        raise NotAFileError(errno.EINVAL, f"it is {kind}, not a file", str(path))
    return descriptor, found.st_size


def read_start(path: str | Path, limit: int) -> bytes:
    """At most `limit` + 1 bytes, so that a longer file is seen to be one.

    Raises:
        OSError: as `open_regular`.
    """
    descriptor, size = _opened(path)
    try:
        # What the kernel makes up has no size, and a file may grow meanwhile.
        portion, data = max(size, _PORTION) + 1, b""
        while len(data) <= limit and (more := os.read(descriptor, min(portion, limit + 1 - len(data)))):
            data += more
        return data
    finally:
        os.close(descriptor)


def read_whole(path: str | Path, limit: int) -> bytes:
    """All of it.

    Raises:
        OSError: as `open_regular`, or it has more than `limit` bytes.
    """
    data = read_start(path, limit)
    if len(data) > limit:
        raise _too_long(path, limit)
    return data


def check_regular(path: str | Path, limit: int) -> None:
    """For a file that a library will read by its name.

    Raises:
        OSError: as `read_whole`.
    """
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise _too_long(path, limit)


def _too_long(path: str | Path, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
