"""Publish a release: resolved, signed, and put in place whole; or sign what is published once more.

A rollout id, once published, keeps its targets for ever: hosts, budgets and gate of a manifest that is out cannot be
changed under the same id, and no release is signed earlier than the one before it, which hosts would refuse.
"""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, cast

import attrs

from evidence.artifacts import SCHEMA_VERSION, Verified, verify
from evidence.canonical import ARTIFACT_LIMIT, CanonicalError, canonicalize, digest, parse
from evidence.documents import ShapeError, decode
from evidence.regular_files import read_start
from evidence.signature import Algorithm
from evidence.trust import KeySlot, TrustedKey
from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.release.changes import Change, changes_between
from nixfleet.release.description import Description
from nixfleet.release.resolve import Resolved, resolve
from nixfleet.release.sign import Signer
from nixfleet.release.staging import (
    FLEET,
    NONCES,
    REVOCATIONS,
    ROLLOUTS,
    SIGNATURE,
    finish_interrupted,
    locked,
    publish_files,
)
from state_machine.intent import Meta
from state_machine.values import RolloutId, WallMs
from wire.json_value import JsonObject, JsonValue
from wire.timestamps import format_rfc3339

_SIGNATURE_READ: Final = 4096

_INTENT_OF_A_ROLLOUT: Final = ("hostSet", "healthGate", "disruptionBudgets")


@attrs.frozen(kw_only=True)
class RolloutReusedError(ConfigurationError):
    """These rollout ids are out already, with other targets."""

    rollout_ids: tuple[RolloutId, ...]

    def __str__(self) -> str:
        ids = ", ".join(self.rollout_ids)
        return f"{ids}: published before with other targets; commit the change first, or give another --commit"


@attrs.frozen(kw_only=True)
class ClockBehindError(StoppedError):
    """What is published was signed later than now; readers would take the new one for a rollback."""

    what: str
    now: WallMs
    signed_at: WallMs

    def __str__(self) -> str:
        published, now = format_rfc3339(self.signed_at), format_rfc3339(self.now)
        return f"the published {self.what} was signed at {published}, this clock says {now}: set the clock first"


@attrs.frozen(kw_only=True)
class NothingPublishedError(StoppedError):
    """There is no fleet to sign again."""

    directory: Path

    def __str__(self) -> str:
        return f"{self.directory} holds no {FLEET} with its signature; publish one with `nixfleet release DESCRIPTION`"


@attrs.frozen(kw_only=True)
class DamagedError(StoppedError):
    """A file of the last release cannot be read as one."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"the published {self.path} is damaged: {self.problem}; move it away to publish without comparing to it"


@attrs.frozen(kw_only=True)
class _Signed:
    """The one member that every artifact has."""

    meta: Meta


@attrs.frozen(kw_only=True)
class Published:
    """What is out now. `files` are paths below the directory."""

    commit: str
    signed_at: WallMs
    fleet_digest: str
    key_id: str
    rollout_ids: tuple[RolloutId, ...]
    files: tuple[str, ...]
    notices: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()


def publish_release(description: Description, signer: Signer, out_dir: Path, commit: str, now_ms: WallMs) -> Published:
    """Resolve, sign and publish a description as `commit` into `out_dir`.

    Raises:
        DescriptionError: listing everything that is wrong; nothing was written.
        RolloutReusedError, ClockBehindError: it would contradict what is published.
        DamagedError: what is published cannot be read.
        BusyError: another process publishes there.
    """
    resolved = resolve(description, commit=commit, signed_at=now_ms, algorithm=_claim(signer))
    with locked(out_dir):
        finish_interrupted(out_dir)
        published = published_document(out_dir / FLEET)
        _check_follows(published, resolved, out_dir, now_ms)
        files = dict(_signed_files(resolved, signer))
        publish_files(out_dir, files)
    return Published(
        commit=commit,
        signed_at=now_ms,
        fleet_digest=resolved.fleet_digest,
        key_id=signer.public_key.key_id,
        rollout_ids=tuple(manifest.rollout_id for manifest, _ in resolved.manifests),
        files=tuple(files),
        notices=resolved.notices,
        changes=changes_between(published, resolved.fleet),
    )


def refresh_release(signer: Signer, out_dir: Path, now_ms: WallMs, *, trusted: KeySlot | None = None) -> Published:
    """Sign what is published again, with nothing changed but the time and the key: the fleet, its manifests, and the
    lists beside them, which grow stale like everything that is signed.

    What is there must verify under `trusted` (default: the signer's own key), or the tool would put its name to
    something that somebody else wrote.

    Raises:
        EvidenceError: what is published does not verify.
        NothingPublishedError, ClockBehindError, BusyError: as the names say.
    """
    with locked(out_dir):
        finish_interrupted(out_dir)
        slot = trusted if trusted is not None else slot_of(signer)
        old = _proven(out_dir, FLEET, slot, now_ms)
        if now_ms < old.signed_at:
            raise ClockBehindError(what=FLEET, now=now_ms, signed_at=old.signed_at)
        fleet_bytes = canonicalize(_signed_anew(old.value, now_ms, signer))
        manifests = {
            name: canonicalize(_signed_anew({**document, "fleetResolvedHash": digest(fleet_bytes)}, now_ms, signer))
            for name, document in _anchored(out_dir, old.digest, slot, now_ms)
        }
        lists = {
            name: canonicalize(_signed_anew(_proven(out_dir, name, slot, now_ms).value, now_ms, signer))
            for name in (REVOCATIONS, NONCES)
            if (out_dir / name).exists()
        }
        files = dict(_with_signatures({**lists, **manifests, FLEET: fleet_bytes}, signer))
        publish_files(out_dir, files)
    return Published(
        commit=decode(_Signed, old.value).meta.ci_commit or "",
        signed_at=now_ms,
        fleet_digest=digest(fleet_bytes),
        key_id=signer.public_key.key_id,
        rollout_ids=tuple(RolloutId(Path(name).stem) for name in manifests),
        files=tuple(files),
    )


def published_document(path: Path) -> JsonObject | None:
    """A published artifact as it is on the disk, unverified: good for comparing with, for nothing else.

    Raises:
        DamagedError: it is not even an artifact.
    """
    try:
        document = parse(read_start(path, ARTIFACT_LIMIT))
        return document if isinstance(document, dict) and decode(_Signed, document) else None
    except FileNotFoundError:
        return None
    except (CanonicalError, ShapeError) as error:
        raise DamagedError(path=path, problem=error.detail) from error


def slot_of(signer: Signer) -> KeySlot:
    """A trust slot that holds the signer's key alone."""
    return KeySlot(current=trusted_key(signer))


def trusted_key(signer: Signer) -> TrustedKey:
    """The signer's key as `trust.json` writes it."""
    key = signer.public_key
    return TrustedKey(algorithm=key.algorithm.value, public=base64.b64encode(key.raw).decode("ascii"))


def sign_file(name: str, document: JsonObject, signer: Signer) -> Mapping[str, bytes]:
    """The two files of a signed document: canonical bytes and 64 raw bytes of signature."""
    return dict(_with_signatures({name: canonicalize(document)}, signer))


def header(signer: Signer, now_ms: WallMs) -> Meta:
    """The signed header of a list without a commit."""
    return Meta(schema_version=SCHEMA_VERSION, signed_at=now_ms, signature_algorithm=_claim(signer))


def _claim(signer: Signer) -> str | None:
    """What `meta.signatureAlgorithm` says; absent means ed25519 (protocol section 2.2)."""
    algorithm = signer.public_key.algorithm
    return None if algorithm is Algorithm.ED25519 else algorithm.value


def _signed_files(resolved: Resolved, signer: Signer) -> Iterator[tuple[str, bytes]]:
    manifests = {f"{ROLLOUTS}/{made.rollout_id}.json": content for made, content in resolved.manifests}
    return _with_signatures({**manifests, FLEET: resolved.fleet_bytes}, signer)


def _with_signatures(files: Mapping[str, bytes], signer: Signer) -> Iterator[tuple[str, bytes]]:
    for name, content in files.items():
        yield name + SIGNATURE, signer.sign(content)
        yield name, content


def _check_follows(published: JsonObject | None, resolved: Resolved, out_dir: Path, now_ms: WallMs) -> None:
    if published is not None:
        signed_at = decode(_Signed, published).meta.signed_at
        if signed_at is not None and now_ms < signed_at:
            raise ClockBehindError(what=FLEET, now=now_ms, signed_at=signed_at)
    reused = [
        manifest.rollout_id
        for manifest, content in resolved.manifests
        if _differs(published_document(out_dir / ROLLOUTS / f"{manifest.rollout_id}.json"), parse(content))
    ]
    if reused:
        raise RolloutReusedError(rollout_ids=tuple(reused))


def _differs(published: JsonObject | None, document: JsonValue) -> bool:
    return (
        published is not None
        and isinstance(document, dict)
        and any(published.get(member) != document.get(member) for member in _INTENT_OF_A_ROLLOUT)
    )


def _proven(out_dir: Path, name: str, slot: KeySlot, now_ms: WallMs) -> Verified[JsonValue]:
    try:
        content = read_start(out_dir / name, ARTIFACT_LIMIT)
        signature = read_start(out_dir / (name + SIGNATURE), _SIGNATURE_READ)
    except FileNotFoundError as error:
        raise NothingPublishedError(directory=out_dir) from error
    return verify(content, signature, slot, now_ms)


def _anchored(out_dir: Path, fleet_digest: str, slot: KeySlot, now_ms: WallMs) -> Iterator[tuple[str, JsonObject]]:
    """The manifests that belong to the published fleet; those of earlier releases are left as they are."""
    for path in sorted((out_dir / ROLLOUTS).glob("*.json")):
        name = f"{ROLLOUTS}/{path.name}"
        document = published_document(path)
        if document is not None and document.get("fleetResolvedHash") == fleet_digest:
            yield name, cast(JsonObject, _proven(out_dir, name, slot, now_ms).value)


def _signed_anew(document: JsonValue, now_ms: WallMs, signer: Signer) -> JsonObject:
    assert isinstance(document, dict)
    meta = cast(JsonObject, document["meta"])
    claim = {"signatureAlgorithm": claimed} if (claimed := _claim(signer)) is not None else {}
    plain = {name: value for name, value in meta.items() if name != "signatureAlgorithm"}
    return {**document, "meta": {**plain, **claim, "signedAt": format_rfc3339(now_ms)}}
