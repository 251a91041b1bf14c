"""A log file for each job, the newest few hundred of them kept.

A build of hours is not lost to a log that the disk is too full for: what cannot be written is missed, and said once.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote

import attrs

from nixfleet.builder.messages import Request
from nixfleet.builder.roots import stamp

KEEP: Final = 300
FILE_MAX: Final = 64 * 1024 * 1024
"""Bytes of one job's log."""
_NAME_MAX: Final = 100
log = logging.getLogger(__name__)


@attrs.define(kw_only=True, eq=False)
class JobLog:
    """Where one job's output goes."""

    path: Path
    file: BinaryIO
    room: int = FILE_MAX

    def write(self, lines: Sequence[str]) -> None:
        """Add lines, as far as there is room."""
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        if not data or not self.room:
            return
        try:
            self.file.write(data[: self.room])
        except OSError as error:
            self.room = 0
            log.warning("%s: the rest of the log is lost: %s", self.path, error.strerror)
        else:
            self.room = max(0, self.room - len(data))


@contextmanager
def job_log(home: Path, request: Request, *, keep: int = KEEP) -> Iterator[JobLog]:
    """A new log file, after the oldest have gone.

    Raises:
        OSError: it cannot be made.
    """
    home.mkdir(parents=True, exist_ok=True)
    for path in sorted(home.glob("*.log"), reverse=True)[keep - 1 :]:
        with contextlib.suppress(FileNotFoundError):  # another job did it
            path.unlink()
    name = f"{stamp()}-{quote(request.repository, safe='')[:_NAME_MAX]}-{quote(request.host, safe='')[:_NAME_MAX]}"
    path = home / f"{name}-{request.job[:8]}.log"
    with path.open("ab", buffering=0) as file:
        yield JobLog(path=path, file=file)
