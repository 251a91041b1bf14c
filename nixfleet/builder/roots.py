"""What the garbage collector leaves alone: the newest systems of each host, by links that Nix knows of.

`STATE/roots/REPOSITORY/HOST/WHEN-COMMIT-JOB` is an out-link: Nix makes it and registers it before it lets go of what it
built, so that there is no instant at which a collector could take it. A build that fails or is cancelled leaves none.
"""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import attrs

from nixfleet.builder.errors import BuildError
from nixfleet.builder.messages import Request
from nixfleet.clock import wall_now


@attrs.define(kw_only=True, eq=False)
class Roots:
    """The roots of one builder."""

    home: Path
    keep: int
    """Different systems of a host that stay."""
    _held: set[Path] = attrs.field(factory=set)

    @contextmanager
    def root(self, request: Request, commit: str) -> Iterator[Path]:
        """Where a job is to put its out-link.

        It stays when the job ends well, and when what was built could not be copied; else there is none afterwards.
        While the job runs nobody else's end removes it.
        """
        link = self.of(request.repository, request.host) / f"{stamp()}-{commit}-{request.job[:8]}"
        link.parent.mkdir(parents=True, exist_ok=True)
        self._held.add(link)
        try:
            yield link
            self._prune(link.parent)
        except BuildError:
            self._prune(link.parent)
            raise
        except BaseException:
            link.unlink(missing_ok=True)
            raise
        finally:
            self._held.discard(link)
            if all(held.parent != link.parent for held in self._held):
                with contextlib.suppress(OSError):  # others are in it
                    link.parent.rmdir()

    def of(self, repository: str, host: str) -> Path:
        """Where the roots of a host are."""
        return self.home / quote(repository, safe="") / quote(host, safe="")

    def _prune(self, directory: Path) -> None:
        """Remove every link but the newest `keep` that lead to different systems."""
        stay: set[Path] = set()
        for link in sorted((path for path in directory.iterdir() if path.is_symlink()), reverse=True):
            target = link.readlink()
            if link in self._held or (target not in stay and len(stay) < self.keep):
                stay.add(target)
            else:
                link.unlink(missing_ok=True)


def stamp() -> str:
    """Now, as a word that sorts by time."""
    seconds, ms = divmod(wall_now(), 1000)
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(seconds))}.{ms:03d}"
