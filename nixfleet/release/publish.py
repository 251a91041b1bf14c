"""Publish a release: resolved, signed, and put in place whole; or sign what is published once more.

A rollout id, once published, keeps its targets for ever: hosts, budgets and gate of a manifest that is out cannot be
changed under the same id, and no release is signed earlier than the one before it, which hosts would refuse.
"""

import base64
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, cast

import attrs

from evidence.artifacts import SCHEMA_VERSION
from evidence.canonical import canonicalize, digest, parse
from evidence.documents import decode
from evidence.signature import Algorithm
from evidence.trust import KeySlot, TrustedKey
from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.release.changes import Change, changes_between
from nixfleet.release.description import Description
from nixfleet.release.pruning import Pruning, prunable
from nixfleet.release.published import Signed, anchored, proven, published_document, rollout_of, signed_at
from nixfleet.release.resolve import Resolved, resolve
from nixfleet.release.sign import Signer
from nixfleet.release.staging import FLEET, NONCES, REVOCATIONS, ROLLOUTS, SIGNATURE
from nixfleet.release.target import Target, settled, target_of
from state_machine.intent import Meta
from state_machine.values import RolloutId, WallMs
from wire.json_value import JsonObject, JsonValue
from wire.timestamps import format_rfc3339

_KEEP_ALL: Final = Pruning()

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
class Published:
    """What is out now. `files` are names below the target, as are those of the manifests that were taken away."""

    commit: str
    signed_at: WallMs
    fleet_digest: str
    key_id: str
    rollout_ids: tuple[RolloutId, ...]
    files: tuple[str, ...]
    pruned: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()

    @property
    def message(self) -> str:
        """What a history of releases says of this one: what was released, who signed it, and when."""
        lines = (
            f"nixfleet release {self.commit[:12]}",
            "",
            f"Commit: {self.commit}",
            *(f"Rollout: {rollout}" for rollout in self.rollout_ids),
            f"Key: {self.key_id}",
            f"Signed-at: {format_rfc3339(self.signed_at)}",
        )
        return "\n".join(lines) + "\n"


def publish_release(
    description: Description,
    signer: Signer,
    out: Target | Path,
    commit: str,
    now_ms: WallMs,
    pruning: Pruning = _KEEP_ALL,
) -> Published:
    """Resolve, sign and publish a description as `commit`; a path is a directory.

    Raises:
        DescriptionError: listing everything that is wrong; nothing was written.
        RolloutReusedError, ClockBehindError: it would contradict what is published.
        DamagedError: what is published cannot be read.
        BusyError, ConflictError, OvertakenError: another process publishes there.
        TargetError: the target cannot be reached, or refused.
    """
    resolved = resolve(description, commit=commit, signed_at=now_ms, algorithm=_claim(signer))
    target = target_of(out)
    # Once, and not before it is known that it may be published: somebody may have to touch a key for it.
    signed = functools.cache(lambda: dict(_signed_files(resolved, signer)))

    def work() -> Published:
        before = published_document(target, FLEET)
        _check_follows(before, resolved, target, now_ms)
        files = signed()
        published = Published(
            commit=commit,
            signed_at=now_ms,
            fleet_digest=resolved.fleet_digest,
            key_id=signer.public_key.key_id,
            rollout_ids=tuple(manifest.rollout_id for manifest, _ in resolved.manifests),
            files=tuple(files),
            pruned=prunable(target, files, pruning, now_ms),
            notices=resolved.notices,
            changes=changes_between(before, resolved.fleet),
        )
        target.publish(files, remove=published.pruned, message=published.message)
        return published

    return settled(target, work, unless_overtaken=True)


def refresh_release(
    signer: Signer,
    out: Target | Path,
    now_ms: WallMs,
    *,
    trusted: KeySlot | None = None,
    pruning: Pruning = _KEEP_ALL,
) -> Published:
    """Sign what is published again, with nothing changed but the time and the key: the fleet, its manifests, and the
    lists beside them, which grow stale like everything that is signed.

    What is there must verify under `trusted` (default: the signer's own key), or the tool would put its name to
    something that somebody else wrote.

    Raises:
        EvidenceError: what is published does not verify.
        NothingPublishedError, ClockBehindError: as the names say.
        BusyError, ConflictError, OvertakenError, TargetError: as for `publish_release`.
    """
    target = target_of(out)
    slot = trusted if trusted is not None else slot_of(signer)

    def work() -> Published:
        files, published = _signed_again(target, signer, now_ms, slot)
        published = attrs.evolve(published, pruned=prunable(target, files, pruning, now_ms))
        target.publish(files, remove=published.pruned, message=published.message)
        return published

    return settled(target, work, unless_overtaken=True)


def _signed_again(
    target: Target, signer: Signer, now_ms: WallMs, slot: KeySlot
) -> tuple[Mapping[str, bytes], Published]:
    old = proven(target, FLEET, slot, now_ms)
    if now_ms < old.signed_at:
        raise ClockBehindError(what=FLEET, now=now_ms, signed_at=old.signed_at)
    fleet_bytes = canonicalize(_signed_anew(old.value, now_ms, signer))
    manifests = {
        name: canonicalize(_signed_anew({**document, "fleetResolvedHash": digest(fleet_bytes)}, now_ms, signer))
        for name, document in anchored(target, old, slot, now_ms)
    }
    lists = {
        name: canonicalize(_signed_anew(proven(target, name, slot, now_ms).value, now_ms, signer))
        for name in (REVOCATIONS, NONCES)
        if target.read(name) is not None
    }
    files = dict(_with_signatures({**lists, **manifests, FLEET: fleet_bytes}, signer))
    return files, Published(
        commit=decode(Signed, old.value).meta.ci_commit or "",
        signed_at=now_ms,
        fleet_digest=digest(fleet_bytes),
        key_id=signer.public_key.key_id,
        rollout_ids=tuple(map(rollout_of, manifests)),
        files=tuple(files),
    )


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


def _check_follows(published: JsonObject | None, resolved: Resolved, target: Target, now_ms: WallMs) -> None:
    before = signed_at(published)
    if before is not None and now_ms < before:
        raise ClockBehindError(what=FLEET, now=now_ms, signed_at=before)
    reused = [
        manifest.rollout_id
        for manifest, content in resolved.manifests
        if _differs(published_document(target, f"{ROLLOUTS}/{manifest.rollout_id}.json"), parse(content))
    ]
    if reused:
        raise RolloutReusedError(rollout_ids=tuple(reused))


def _differs(published: JsonObject | None, document: JsonValue) -> bool:
    return (
        published is not None
        and isinstance(document, dict)
        and any(published.get(member) != document.get(member) for member in _INTENT_OF_A_ROLLOUT)
    )


def _signed_anew(document: JsonValue, now_ms: WallMs, signer: Signer) -> JsonObject:
    assert isinstance(document, dict)
    meta = cast(JsonObject, document["meta"])
    claim = {"signatureAlgorithm": claimed} if (claimed := _claim(signer)) is not None else {}
    plain = {name: value for name, value in meta.items() if name != "signatureAlgorithm"}
    return {**document, "meta": {**plain, **claim, "signedAt": format_rfc3339(now_ms)}}
