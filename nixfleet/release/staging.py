"""Put a set of files in place so that a reader never sees a fleet whose manifests are missing.

Everything is first written and synced into a directory of its own, which one rename then declares complete. Only
after that are the files moved into place: manifests first, the fleet last, each signature just before its file. A
publication that was cut off before the rename never happened; one that was cut off after it is finished by the next
publication, from what is left in the directory. A reader that comes between a signature and its file sees a pair
that does not verify, keeps what it had and finds the rest at its next look.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import attrs

from nixfleet.errors import NoDirectoryError, StoppedError
from nixfleet.files import create_file, sync_directory

FLEET: Final = "fleet.resolved.json"
REVOCATIONS: Final = "revocations.json"
NONCES: Final = "bootstrap-nonces.json"
SIGNATURE: Final = ".sig"
ROLLOUTS: Final = "rollouts"

_INCOMPLETE: Final = ".incomplete"
_COMPLETE: Final = ".publishing"

Move = Callable[[Path, Path], object]


@attrs.frozen(kw_only=True)
class BusyError(StoppedError):
    """Another process publishes to the same place."""

    where: str

    def __str__(self) -> str:
        return f"another release is being published into {self.where}; wait for it to end and try again"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory against other publications. The lock goes with the process, however it ends.

    Raises:
        BusyError: somebody else holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NoDirectoryError(path=directory, what="signed files", cause=error.strerror or str(error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError(where=str(directory)) from error
    finally:
        os.close(descriptor)


def publish_files(directory: Path, files: Mapping[str, bytes], *, move: Move = os.replace) -> None:
    """Publish `files`, by their paths below `directory`, whose lock the caller holds.

    `move` puts one file into place; it is named so that a test can stop the publication between two of them.
    """
    finish_interrupted(directory, move=move)
    staged = directory / _INCOMPLETE
    shutil.rmtree(staged, ignore_errors=True)
    for name, content in files.items():
        target = staged / name
        target.parent.mkdir(parents=True, exist_ok=True)
        create_file(target, content)
    for folder in {(staged / name).parent for name in files}:
        sync_directory(folder)
    staged.rename(directory / _COMPLETE)
    sync_directory(directory)
    finish_interrupted(directory, move=move)


def finish_interrupted(directory: Path, *, move: Move = os.replace) -> bool:
    """Move what a complete publication has left into place. False: there was nothing to finish."""
    complete = directory / _COMPLETE
    if not complete.is_dir():
        return False
    left = sorted((path for path in complete.rglob("*") if path.is_file()), key=_order)
    for path in left:
        target = directory / path.relative_to(complete)
        target.parent.mkdir(parents=True, exist_ok=True)
        move(path, target)
    for folder in {(directory / path.relative_to(complete)).parent for path in left}:
        sync_directory(folder)
    shutil.rmtree(complete)
    sync_directory(directory)
    return True


def _order(path: Path) -> tuple[bool, str, bool]:
    """The fleet after everything else; of each pair the signature first."""
    plain = path.name.removesuffix(SIGNATURE)
    return plain == FLEET, str(path.with_name(plain)), path.name == plain
