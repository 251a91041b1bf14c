"""What is out now, read back from where it was published: unverified to compare with, proved to be built upon."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import cast

import attrs

from evidence.artifacts import ArtifactError, Verified, verify
from evidence.canonical import CanonicalError, parse
from evidence.documents import ShapeError, decode
from evidence.trust import KeySlot
from nixfleet.errors import StoppedError
from nixfleet.release.staging import FLEET, ROLLOUTS, SIGNATURE
from nixfleet.release.target import Target
from state_machine.intent import Meta
from state_machine.values import RolloutId, WallMs
from wire.json_value import JsonObject, JsonValue


@attrs.frozen(kw_only=True)
class NothingPublishedError(StoppedError):
    """There is no fleet to sign again."""

    where: str

    def __str__(self) -> str:
        return f"{self.where} holds no {FLEET} with its signature; publish one with `nixfleet release DESCRIPTION`"


@attrs.frozen(kw_only=True)
class DamagedError(StoppedError):
    """A file of the last release cannot be read as one."""

    where: str
    name: str
    problem: str

    def __str__(self) -> str:
        return (
            f"the published {self.where}/{self.name} is damaged: {self.problem}; move it away to publish without "
            "comparing to it"
        )


@attrs.frozen(kw_only=True)
class UnprovenError(StoppedError):
    """What is out was signed by nobody who is trusted here, so it is neither signed again nor added to."""

    where: str
    name: str
    problem: str

    def __str__(self) -> str:
        anew = ", or release anew" if self.name == FLEET or self.name.startswith(ROLLOUTS) else ""
        return (
            f"the published {self.where}/{self.name} does not verify: {self.problem}; give a --trust-file that names "
            f"the key it was signed with{anew}"
        )


@attrs.frozen(kw_only=True)
class Signed:
    """The one member that every artifact has."""

    meta: Meta


def published_document(target: Target, name: str) -> JsonObject | None:
    """A published artifact as it is, unverified: good for comparing with, for nothing else.

    Raises:
        DamagedError: it is not even an artifact.
        TargetError: it cannot be had.
    """
    content = target.read(name)
    if content is None:
        return None
    try:
        document = parse(content)
        return document if isinstance(document, dict) and decode(Signed, document) else None
    except (CanonicalError, ShapeError) as error:
        raise DamagedError(where=target.where, name=name, problem=error.detail) from error


def signed_at(document: JsonObject | None) -> WallMs | None:
    """When it says it was signed."""
    return None if document is None else decode(Signed, document).meta.signed_at


def proven(target: Target, name: str, slot: KeySlot, now_ms: WallMs) -> Verified[JsonValue]:
    """A published artifact, verified.

    Raises:
        UnprovenError: it does not verify.
        NothingPublishedError: there is none, or no signature.
    """
    content, signature = target.read(name), target.read(name + SIGNATURE)
    if content is None or signature is None:
        raise NothingPublishedError(where=target.where)
    try:
        return verify(content, signature, slot, now_ms)
    except ArtifactError as error:
        raise UnprovenError(where=target.where, name=name, problem=str(error)) from error


def anchored(
    target: Target, fleet: Verified[JsonValue], slot: KeySlot, now_ms: WallMs
) -> Iterator[tuple[str, JsonObject]]:
    """The manifests that belong to the published fleet, verified; those of earlier releases are left out."""
    for name in sorted({*target.names(), *_named_by(cast(JsonObject, fleet.value))}):
        document = published_document(target, name)
        if document is not None and document.get("fleetResolvedHash") == fleet.digest:
            document = cast(JsonObject, proven(target, name, slot, now_ms).value)
            # Once more, of what was proved: a place that changes meanwhile hands out two files under one name.
            if document.get("fleetResolvedHash") == fleet.digest:
                yield name, document


def rollout_of(name: str) -> RolloutId:
    """The rollout that a manifest of this name is of."""
    return RolloutId(PurePosixPath(name).stem)


def _named_by(fleet: JsonObject) -> Iterator[str]:
    channels, commit = fleet.get("channels"), decode(Signed, fleet).meta.ci_commit
    if isinstance(channels, dict) and commit is not None:
        yield from (f"{ROLLOUTS}/{channel}@{commit}.json" for channel in channels)
