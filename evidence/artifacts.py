"""Signed artifacts: the ordered checks that turn received bytes into intent (protocol section 2.6, steps 1 to 8).

Whatever is returned was signed by a trusted key, says what this software understands, and was not signed before the
key's `rejectBefore`. Whether it is fresh enough (steps 9 and 10) and newer than what was accepted before is decided
in `state_machine`, which knows the history. The artifact never chooses how it is verified: the trust root's algorithm
decides, and a claim in the artifact that says otherwise is refused.
"""

from typing import ClassVar, Final, Generic, TypeVar

import attrs

from evidence import documents
from evidence.canonical import canonicalize, digest, parse
from evidence.errors import EvidenceError
from evidence.signature import Algorithm, PublicKey
from evidence.signature import verify as verify_signature
from evidence.trust import KeySlot, accepted_keys
from state_machine.intent import (
    BootstrapNonces,
    Fleet,
    Manifest,
    Meta,
    PolicyWave,
    Revocations,
    RolloutPolicy,
    Selector,
)
from state_machine.values import Reason, RolloutId, WallMs, is_rollout_id
from wire.json_value import JsonValue
from wire.timestamps import format_rfc3339

SCHEMA_VERSION: Final = 1

Value = TypeVar("Value")
Artifact = TypeVar("Artifact", Fleet, Manifest, Revocations, BootstrapNonces)


class ArtifactError(EvidenceError):
    """An artifact that parses as JSON but is not to be acted on. Never raised as itself."""


@attrs.frozen(kw_only=True)
class NoTrustRootsError(ArtifactError):
    """The trust root's slot for this role holds no key."""

    reason: ClassVar[Reason] = Reason.NO_TRUST_ROOTS

    def __str__(self) -> str:
        return "the trust file has no key for this role; deploy one that has"


@attrs.frozen(kw_only=True)
class UnsupportedAlgorithmError(ArtifactError):
    """None of the accepted keys has an algorithm that counts for this role."""

    reason: ClassVar[Reason] = Reason.UNSUPPORTED_ALGORITHM
    declared: tuple[str, ...]

    def __str__(self) -> str:
        algorithms = ", ".join(self.declared)
        return f"the trusted keys are of algorithms that do not count here ({algorithms}); update this software"


@attrs.frozen(kw_only=True)
class BadSignatureError(ArtifactError):
    """No accepted key made this signature over these bytes."""

    reason: ClassVar[Reason] = Reason.BAD_SIGNATURE
    signature_size: int
    tried: tuple[str, ...]
    """Ids of the keys tried; those that could not be read at all are left out."""

    def __str__(self) -> str:
        keys = ", ".join(self.tried) or "none that can be read"
        return f"the signature of {self.signature_size} bytes is by none of the trusted keys ({keys})"


@attrs.frozen(kw_only=True)
class AlgorithmClaimError(ArtifactError):
    """The artifact says it was signed with another algorithm than it was."""

    reason: ClassVar[Reason] = Reason.UNSUPPORTED_ALGORITHM
    claimed: str
    actual: str

    def __str__(self) -> str:
        return f"meta.signatureAlgorithm says {self.claimed[:32]!r}, but the key that verifies it is {self.actual}"


@attrs.frozen(kw_only=True)
class SchemaVersionError(ArtifactError):
    """An artifact of a version this software does not know."""

    reason: ClassVar[Reason] = Reason.SCHEMA_VERSION
    member: str
    found: int

    def __str__(self) -> str:
        return f"{self.member} is {self.found}, only {SCHEMA_VERSION} is known; update this software"


@attrs.frozen(kw_only=True)
class NotSignedError(ArtifactError):
    """The artifact does not say when it was signed, so its age cannot be judged."""

    reason: ClassVar[Reason] = Reason.NOT_SIGNED

    def __str__(self) -> str:
        return "meta.signedAt is absent; release it again with the time of signing"


@attrs.frozen(kw_only=True)
class RejectedBeforeError(ArtifactError):
    """Signed before the instant from which on the role's signatures count."""

    reason: ClassVar[Reason] = Reason.REJECTED_BEFORE
    signed_at: WallMs
    reject_before: WallMs

    def __str__(self) -> str:
        return (
            f"signed {format_rfc3339(self.signed_at)}, but the trust file rejects what was signed before "
            f"{format_rfc3339(self.reject_before)}; sign it again"
        )


@attrs.frozen(kw_only=True)
class ManifestMismatchError(ArtifactError):
    """A genuine manifest, but of another rollout than the one asked for, or one that contradicts itself."""

    reason: ClassVar[Reason] = Reason.MANIFEST_MISMATCH
    problem: str

    def __str__(self) -> str:
        return self.problem


@attrs.frozen(kw_only=True)
class Verified(Generic[Value]):
    """What a trusted key signed. `digest` is SHA-256 over the canonical bytes, which other artifacts refer to."""

    value: Value
    digest: str
    key_id: str
    algorithm: str
    signed_at: WallMs


@attrs.frozen(kw_only=True)
class _Header:
    """What all artifacts have in common."""

    schema_version: int
    meta: Meta


@attrs.frozen(kw_only=True)
class _Proven:
    """Bytes that a trusted key signed, not yet looked into."""

    value: JsonValue
    canonical: bytes
    key: PublicKey


def verify(data: bytes, signature: bytes, slot: KeySlot, now_ms: WallMs) -> Verified[JsonValue]:
    """Check an artifact of any kind; `now_ms` decides only whether the slot's successor key counts yet.

    Raises:
        CanonicalError: the bytes are not JSON that can be signed.
        ShapeError: the members that every artifact has are missing or of the wrong type.
        ArtifactError: a subclass per check that failed.
    """
    proven = _prove(data, signature, slot, now_ms)
    return _accept(proven, documents.decode(_Header, proven.value), slot, proven.value)


def verify_fleet(data: bytes, signature: bytes, slot: KeySlot, now_ms: WallMs) -> Verified[Fleet]:
    """Check and read `fleet.resolved.json`. An `all-at-once` policy without waves gets the one it means.

    Raises:
        EvidenceError: as `verify`, and `ShapeError` for any other member.
    """
    verified = _verify_as(Fleet, data, signature, slot, now_ms)
    fleet = verified.value
    policies = {name: _with_its_wave(policy) for name, policy in fleet.rollout_policies.items()}
    return attrs.evolve(verified, value=attrs.evolve(fleet, rollout_policies=policies))


def verify_manifest(
    data: bytes, signature: bytes, slot: KeySlot, now_ms: WallMs, *, rollout: RolloutId
) -> Verified[Manifest]:
    """Check and read the manifest that was asked for as `rollout`.

    Raises:
        EvidenceError: as `verify`, and `ShapeError` for any other member.
        ManifestMismatchError: it is of another rollout, or names a host twice.
    """
    verified = _verify_as(Manifest, data, signature, slot, now_ms)
    manifest = verified.value
    if not is_rollout_id(manifest.rollout_id):
        raise documents.ShapeError(path="$.channelRef", problem="channel and channelRef do not make a rollout id")
    if manifest.rollout_id != rollout:
        raise ManifestMismatchError(problem=f"asked for rollout {rollout}, got the manifest of {manifest.rollout_id}")
    if len({entry.hostname for entry in manifest.host_set}) != len(manifest.host_set):
        raise ManifestMismatchError(problem="the manifest names a host twice, so its target is not known")
    return verified


def verify_revocations(data: bytes, signature: bytes, slot: KeySlot, now_ms: WallMs) -> Verified[Revocations]:
    """Check and read the list of revoked hosts.

    Raises:
        EvidenceError: as `verify`, and `ShapeError` for any other member.
    """
    return _verify_as(Revocations, data, signature, slot, now_ms)


def verify_nonces(data: bytes, signature: bytes, slot: KeySlot, now_ms: WallMs) -> Verified[BootstrapNonces]:
    """Check and read the allow-list of enrolment nonces.

    Raises:
        EvidenceError: as `verify`, and `ShapeError` for any other member.
    """
    return _verify_as(BootstrapNonces, data, signature, slot, now_ms)


def prove_bytes(
    message: bytes,
    signature: bytes,
    slot: KeySlot,
    now_ms: WallMs,
    *,
    algorithms: frozenset[Algorithm] = frozenset(Algorithm),
) -> PublicKey:
    """The accepted key that made `signature` over `message` (step 4 alone, for what is not an artifact).

    Raises:
        NoTrustRootsError, UnsupportedAlgorithmError, BadSignatureError: there is none.
    """
    declared = accepted_keys(slot, now_ms)
    if not declared:
        raise NoTrustRootsError()
    supported = [entry for entry in declared if entry.algorithm in algorithms]
    if not supported:
        raise UnsupportedAlgorithmError(declared=tuple(entry.algorithm[:32] for entry in declared))
    keys = [key for entry in supported if (key := entry.key) is not None]
    for key in keys:
        if verify_signature(key, message, signature):
            return key
    raise BadSignatureError(signature_size=len(signature), tried=tuple(key.key_id for key in keys))


def check_not_rejected(signed_at: WallMs, slot: KeySlot) -> None:
    """Step 8: refuse what was signed strictly before the slot's `rejectBefore`.

    Raises:
        RejectedBeforeError: it was.
    """
    if slot.reject_before is not None and signed_at < slot.reject_before:
        raise RejectedBeforeError(signed_at=signed_at, reject_before=slot.reject_before)


def _verify_as(
    kind: type[Artifact], data: bytes, signature: bytes, slot: KeySlot, now_ms: WallMs
) -> Verified[Artifact]:
    proven = _prove(data, signature, slot, now_ms)
    document = documents.decode(kind, proven.value)
    header = _Header(schema_version=document.schema_version, meta=document.meta)
    return _accept(proven, header, slot, document)


def _prove(data: bytes, signature: bytes, slot: KeySlot, now_ms: WallMs) -> _Proven:
    # First, so that a host without roots says so whatever it was served.
    if not accepted_keys(slot, now_ms):
        raise NoTrustRootsError()
    value = parse(data)
    canonical = canonicalize(value)
    return _Proven(value=value, canonical=canonical, key=prove_bytes(canonical, signature, slot, now_ms))


def _accept(proven: _Proven, header: _Header, slot: KeySlot, value: Value) -> Verified[Value]:
    meta = header.meta
    for member, found in (("schemaVersion", header.schema_version), ("meta.schemaVersion", meta.schema_version)):
        if found != SCHEMA_VERSION:
            raise SchemaVersionError(member=member, found=found)
    actual = proven.key.algorithm.value
    if meta.signature_algorithm is not None and meta.signature_algorithm != actual:
        raise AlgorithmClaimError(claimed=meta.signature_algorithm, actual=actual)
    if meta.signed_at is None:
        raise NotSignedError()
    check_not_rejected(meta.signed_at, slot)
    return Verified(
        value=value,
        digest=digest(proven.canonical),
        key_id=proven.key.key_id,
        algorithm=actual,
        signed_at=meta.signed_at,
    )


def _with_its_wave(policy: RolloutPolicy) -> RolloutPolicy:
    if policy.strategy != "all-at-once" or policy.waves:
        return policy
    return attrs.evolve(policy, waves=(PolicyWave(selector=Selector(all=True)),))
