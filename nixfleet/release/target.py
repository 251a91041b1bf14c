"""Where a release goes, as the rest of the tool sees it: a few names, each with bytes, and one way to change them.

A reader of any target finds the old release or the new one. What is signed goes in before what names it: the manifests
before the fleet, of each pair the signature before its file. So a reader that comes in between sees a fleet whose
manifests are all there, or a pair that does not verify; then it keeps what it had (`control_plane/adoption.py`) and
finds the rest at its next look. Each kind of target says how it keeps that when the publisher dies half way.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol, TypeVar

import attrs

from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.release.staging import FLEET, ROLLOUTS, SIGNATURE
from state_machine.values import is_rollout_id

ATTEMPTS: Final = 4
"""How often a publication is made: once, and three times on top of what somebody else put there meanwhile."""

_SECRET: Final = re.compile(r"(?<=//)[^/]*@")
"""Whom an address speaks of, and with which password."""

Done = TypeVar("Done")


class Target(Protocol):
    """A place that readers are pointed at. Names are paths below it, with slashes."""

    @property
    def where(self) -> str:
        """What people call it; no secret is part of it."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Keep it against other publications as far as it can be, and see what is there now; what a publication that
        was cut off had promised is finished first.

        Raises:
            BusyError: somebody else publishes there.
            TargetError: it cannot be reached.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """A file; None when there is none of this name.

        Raises:
            TargetError: it is there, or may be, but cannot be had.
        """
        ...

    def names(self) -> tuple[str, ...]:
        """The rollout manifests that are known to be there, sorted, without their signatures."""
        ...

    def publish(self, files: Mapping[str, bytes], *, remove: Sequence[str] = (), message: str) -> None:
        """Put files in place while it is held, and then take manifests away with their signatures. `message` is for
        where people read a history.

        Raises:
            MovedError: somebody else published since it was held; nothing was changed.
            ConflictError, TargetError: as the names say.
        """
        ...


@attrs.frozen(kw_only=True)
class TargetError(StoppedError):
    """A target did not do what it was asked to."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@attrs.frozen(kw_only=True)
class AddressError(ConfigurationError):
    """Text that says no place to publish to."""

    address: str
    problem: str

    def __str__(self) -> str:
        shown = _SECRET.sub("...@", self.address)[:200]
        return (
            f"--to {shown!r}: {self.problem}; write a directory, git+URL#BRANCH, https://HOST/PREFIX or "
            "s3://BUCKET/PREFIX?region=REGION"
        )


@attrs.frozen(kw_only=True)
class ConflictError(StoppedError):
    """Somebody else changed a file between our reading and our writing it."""

    where: str
    name: str

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.name} was changed by somebody else meanwhile, so another release is being published "
            "there; look at it, then run this again"
        )


@attrs.frozen(kw_only=True)
class MovedError(StoppedError):
    """The place moved on between our looking and our publishing, and did so again at each further attempt."""

    where: str

    def __str__(self) -> str:
        return f"{self.where} moved on at each of {ATTEMPTS} attempts to publish there; run this again when it is quiet"


@attrs.frozen(kw_only=True)
class OvertakenError(StoppedError):
    """Another release came in between, and ours was made without knowing it."""

    where: str

    def __str__(self) -> str:
        return f"{self.where}: another release was published there meanwhile; look at it, then run this again"


def settled(target: Target, work: Callable[[], Done], *, unless_overtaken: bool) -> Done:
    """Do `work` while the target is held, and again on top of what came in between, `ATTEMPTS` times in all.

    `unless_overtaken`: not when that was another fleet. What is told here as a release would undo it unseen.

    Raises:
        OvertakenError, MovedError: as the names say; and whatever the target or `work` raise.
    """
    first: list[bytes | None] = []
    for left in reversed(range(ATTEMPTS)):
        with target.held():
            first.append(target.read(FLEET) if unless_overtaken else None)
            if first[-1] != first[0]:
                raise OvertakenError(where=target.where)
            try:
                return work()
            except MovedError:
                if not left:
                    raise
    raise AssertionError("the last attempt returns or raises")


def in_order(names: Sequence[str]) -> list[str]:
    """The order in which files become visible: the fleet after everything else; of each pair the signature first."""
    return sorted(names, key=lambda name: (_plain(name) == FLEET, _plain(name), name == _plain(name)))


def _plain(name: str) -> str:
    return name.removesuffix(SIGNATURE)


def is_manifest(name: object) -> bool:
    """A name that a rollout manifest may have; whatever else lies beside them is not ours."""
    if not isinstance(name, str) or not name.endswith(".json") or not name.startswith(f"{ROLLOUTS}/"):
        return False
    return is_rollout_id(name.removeprefix(f"{ROLLOUTS}/").removesuffix(".json"))


def target_of(place: Target | Path) -> Target:
    """The target itself; a path is a directory."""
    if not isinstance(place, Path):
        return place
    from nixfleet.release.targets.directory import (
        DirectoryTarget,
    )  # which is one of the kinds, and needs the names here

    return DirectoryTarget(root=place)
