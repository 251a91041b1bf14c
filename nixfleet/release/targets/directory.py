"""A directory of this machine: files are staged, declared complete by one rename, and then moved into place.

A publisher that dies before that rename has done nothing; one that dies after it has left everything that is needed to
finish, and whoever holds the directory next does so (`nixfleet.release.staging`).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from evidence.canonical import ARTIFACT_LIMIT
from evidence.regular_files import read_start
from nixfleet.release.staging import ROLLOUTS, SIGNATURE, finish_interrupted, locked, publish_files
from nixfleet.release.target import is_manifest


@attrs.frozen(kw_only=True)
class DirectoryTarget:
    """A directory, made when something is published there."""

    root: Path

    @property
    def where(self) -> str:
        """The directory."""
        return str(self.root)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """As `Target.held`: a lock on the directory, which goes with the process."""
        with locked(self.root):
            finish_interrupted(self.root)
            yield

    def read(self, name: str) -> bytes | None:
        """As `Target.read`.

        Raises:
            OSError: the operating system refuses.
        """
        try:
            return read_start(self.root / name, ARTIFACT_LIMIT)
        except FileNotFoundError:
            return None

    def names(self) -> tuple[str, ...]:
        """As `Target.names`."""
        found = (f"{ROLLOUTS}/{path.name}" for path in (self.root / ROLLOUTS).glob("*.json"))
        return tuple(sorted(filter(is_manifest, found)))

    def publish(self, files: Mapping[str, bytes], *, remove: Sequence[str] = (), message: str) -> None:
        """As `Target.publish`; nobody reads a history here."""
        publish_files(self.root, files)
        for name in remove:
            for path in (self.root / name, self.root / (name + SIGNATURE)):
                path.unlink(missing_ok=True)
