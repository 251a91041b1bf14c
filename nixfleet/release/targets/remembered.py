"""A target elsewhere, and what was published there from this machine: whoever keeps the target cannot put it back.

Everything that is signed again is read from the target first. A server that hands out a release of last month, or last
month's list of revoked hosts, genuine as they are, would otherwise get a new signature for them, which hosts take for
news. So for each signed file the time of the last signature is kept here, and what is older, or gone, is refused. Only
what was published from here counts: nothing that the target says can make it look newer than it is.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import attrs

from evidence.canonical import parse
from nixfleet.errors import StoppedError, UnreadableFileError
from nixfleet.files import read_bytes, replace_file
from nixfleet.release.published import DamagedError, published_document, signed_at
from nixfleet.release.staging import FLEET, NONCES, REVOCATIONS
from nixfleet.release.target import Target
from state_machine.values import WallMs
from wire.timestamps import format_rfc3339

_KEPT: Final = (FLEET, REVOCATIONS, NONCES)
"""Manifests are held to by the fleet that they are anchored to."""


@attrs.frozen(kw_only=True)
class PutBackError(StoppedError):
    """The target has something older than what was published there. `found` None: it has nothing."""

    where: str
    name: str
    found: WallMs | None
    published: WallMs
    memory: Path

    def __str__(self) -> str:
        there = "is gone" if self.found is None else f"is the one signed {format_rfc3339(self.found)}"
        return (
            f"{self.where}/{self.name} {there}, and one signed {format_rfc3339(self.published)} was published from "
            "here: somebody put the place back, and signing that again would have hosts take it for new; put the "
            f"newest back, or remove {self.memory} if this is meant"
        )


@attrs.frozen(kw_only=True)
class RememberedTarget:
    """`target`, with a memory in a file. `say` is told when nothing can be remembered."""

    target: Target
    memory: Path
    say: Callable[[str], None]

    @property
    def where(self) -> str:
        """As `Target.where`."""
        return self.target.where

    def held(self) -> AbstractContextManager[None]:
        """As `Target.held`."""
        return self.target.held()

    def read(self, name: str) -> bytes | None:
        """As `Target.read`.

        Raises:
            PutBackError: it is older than what was published from here.
        """
        content = self.target.read(name)
        published = self._remembered().get(name)
        if published is not None and (content is None or self._is_older(name, published)):
            found = None if content is None else signed_at(published_document(self.target, name))
            raise PutBackError(where=self.where, name=name, found=found, published=published, memory=self.memory)
        return content

    def names(self) -> tuple[str, ...]:
        """As `Target.names`."""
        return self.target.names()

    def publish(self, files: Mapping[str, bytes], *, remove: Sequence[str] = (), message: str) -> None:
        """As `Target.publish`."""
        self.target.publish(files, remove=remove, message=message)
        # Not what the target hands out now: it might hand out anything.
        ours = {name: _signed_at(files[name]) for name in _KEPT if name in files}
        try:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.memory, json.dumps({**self._remembered(), **ours}, sort_keys=True).encode() + b"\n")
        except OSError as error:
            lost = f"{self.memory}: {error.strerror or error}"
            self.say(f"it cannot be remembered what was published, so nobody will notice if it is put back: {lost}")

    def _is_older(self, name: str, published: WallMs) -> bool:
        with contextlib.suppress(DamagedError):  # which whoever wants to build on it will say
            found = signed_at(published_document(self.target, name))
            return found is None or found < published
        return False

    def _remembered(self) -> dict[str, WallMs]:
        if not self.memory.exists():
            return {}
        content = read_bytes(self.memory, "memory of what was published")
        try:
            return dict(_times(json.loads(content)))
        except (ValueError, RecursionError) as error:
            cause = "it is damaged: remove it"
            raise UnreadableFileError(path=self.memory, what="memory of what was published", cause=cause) from error


def remembered(target: Target, address: str, below: Path, say: Callable[[str], None]) -> Target:
    """The target at this address, with a memory of its own in the directory `below`."""
    named = hashlib.sha256(address.encode()).hexdigest()[:24]
    return RememberedTarget(target=target, memory=below / f"{named}.newest.json", say=say)


def _times(written: object) -> Iterator[tuple[str, WallMs]]:
    if not isinstance(written, dict):
        raise ValueError("it is no object")
    for name, at in written.items():
        if not isinstance(at, int):
            raise ValueError(f"{name} has no time")
        yield name, WallMs(at)


def _signed_at(content: bytes) -> WallMs | None:
    document = parse(content)
    assert isinstance(document, dict), "what is signed is an object"
    return signed_at(document)
