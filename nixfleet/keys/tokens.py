"""Mint enrolment tokens, and keep the two signed lists that go with a fleet: allowed nonces and revocations.

A token is worth nothing until its nonce is on the allow-list, so the list is published first: if anything fails
between the two, there is a nonce that nobody holds, which expires.
"""

import base64
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import attrs

from evidence.artifacts import SCHEMA_VERSION, ArtifactError, Verified, verify_nonces, verify_revocations
from evidence.canonical import canonicalize
from evidence.documents import encode, is_host_name
from evidence.signature import Algorithm
from evidence.tokens import NONCE_SIZE, TOKEN_VERSION, TokenClaims, nonce_entry
from evidence.trust import KeySlot
from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.release.publish import ClockBehindError, header, sign_file, slot_of
from nixfleet.release.published import UnprovenError
from nixfleet.release.sign import Signer
from nixfleet.release.staging import NONCES, REVOCATIONS, SIGNATURE
from nixfleet.release.target import Target, settled, target_of
from state_machine.intent import BootstrapNonce, BootstrapNonces, Revocation, Revocations
from state_machine.values import HostName, WallMs
from wire.json_value import JsonObject
from wire.timestamps import format_rfc3339

SignedList = TypeVar("SignedList", BootstrapNonces, Revocations)

Place = Target | Path
"""Where a list is: in a target under its usual name, or in a file."""


@attrs.frozen(kw_only=True)
class HostNameError(ConfigurationError):
    """Text that cannot name a host."""

    found: str

    def __str__(self) -> str:
        return f"{self.found[:80]!r} is not a host name: letters, digits, dots and inner dashes"


@attrs.frozen(kw_only=True)
class OrgRootAlgorithmError(ConfigurationError):
    """Tokens are ed25519 only (protocol section 8.1)."""

    found: str

    def __str__(self) -> str:
        return f"tokens are signed with an ed25519 org root key, this one is {self.found}"


@attrs.frozen(kw_only=True)
class UnsignedListError(StoppedError):
    """A list that nobody stands behind."""

    where: str
    name: str

    def __str__(self) -> str:
        return f"{self.where}/{self.name} has no {self.name}{SIGNATURE} beside it, so who wrote it? put it back"


@attrs.frozen(kw_only=True)
class Minted:
    """A new token and the list entry that allows it."""

    token: JsonObject = attrs.field(repr=False)
    entry: BootstrapNonce = attrs.field(repr=False)


def mint(hostname: str, fingerprint: str, org_root: Signer, now: WallMs, validity_ms: int, by: str | None) -> Minted:
    """A token for the host whose ed25519 key has this fingerprint: base64 of SHA-256 over the raw 32 bytes.

    Raises:
        HostNameError, OrgRootAlgorithmError: as the names say.
    """
    if not is_host_name(hostname):
        raise HostNameError(found=hostname)
    algorithm = org_root.public_key.algorithm
    if algorithm is not Algorithm.ED25519:
        raise OrgRootAlgorithmError(found=algorithm.value)
    claims = TokenClaims(
        hostname=HostName(hostname),
        expected_pubkey_fingerprint=fingerprint,
        issued_at=now,
        expires_at=WallMs(now + validity_ms),
        nonce=secrets.token_hex(NONCE_SIZE),
    )
    signature = org_root.sign(canonicalize(encode(claims)))
    return Minted(
        token={
            "version": TOKEN_VERSION,
            "claims": encode(claims),
            "signature": base64.b64encode(signature).decode("ascii"),
        },
        entry=nonce_entry(claims, minted_by=by),
    )


def allow_nonce(place: Place, entry: BootstrapNonce, ci_key: Signer, now: WallMs, trusted: KeySlot | None) -> int:
    """Put a nonce on the signed allow-list, drop the expired ones, sign and publish it. Returns how many are on it.

    Raises:
        UnprovenError: the list that is there does not verify under `trusted` (default: the CI key itself).
        ClockBehindError, BusyError, ConflictError, MovedError, TargetError: as the names say.
    """

    def extended(old: BootstrapNonces | None) -> BootstrapNonces:
        kept = [known for known in (old.bootstrap_nonces if old else ()) if known.expires_at > now]
        return BootstrapNonces(schema_version=SCHEMA_VERSION, bootstrap_nonces=(*kept, entry), meta=header(ci_key, now))

    return len(_rewrite(*_placed(place, NONCES), verify_nonces, extended, ci_key, now, trusted).bootstrap_nonces)


def revoke(place: Place, revocation: Revocation, ci_key: Signer, now: WallMs, trusted: KeySlot | None) -> Revocations:
    """Put a host on the signed list of revocations, or move its instant forward, sign and publish the list.

    Raises:
        HostNameError: the host's name is none.
        UnprovenError, ClockBehindError, TargetError and the others: as `allow_nonce`.
    """
    if not is_host_name(revocation.hostname):
        raise HostNameError(found=revocation.hostname)

    def extended(old: Revocations | None) -> Revocations:
        known = {entry.hostname: entry for entry in (old.revocations if old else ())}
        before = known.get(revocation.hostname)
        # A revocation is never taken back in part: certificates that were refused would be good again.
        if before is None or before.not_before <= revocation.not_before:
            known[revocation.hostname] = revocation
        entries = tuple(known[host] for host in sorted(known))
        return Revocations(schema_version=SCHEMA_VERSION, revocations=entries, meta=header(ci_key, now))

    return _rewrite(*_placed(place, REVOCATIONS), verify_revocations, extended, ci_key, now, trusted)


def _placed(place: Place, usual: str) -> tuple[Target, str]:
    return (target_of(place.parent), place.name) if isinstance(place, Path) else (place, usual)


def _rewrite(
    target: Target,
    name: str,
    verify: Callable[[bytes, bytes, KeySlot, WallMs], Verified[SignedList]],
    extended: Callable[[SignedList | None], SignedList],
    signer: Signer,
    now: WallMs,
    trusted: KeySlot | None,
) -> SignedList:
    def work() -> SignedList:
        old = _read(target, name, verify, trusted if trusted is not None else slot_of(signer), now)
        if old is not None and now < old.signed_at:
            raise ClockBehindError(what=name, now=now, signed_at=old.signed_at)
        new = extended(old.value if old is not None else None)
        message = f"nixfleet {name}\n\nKey: {signer.public_key.key_id}\nSigned-at: {format_rfc3339(now)}\n"
        target.publish(sign_file(name, encode(new), signer), message=message)
        return new

    # On top of whatever came in between: an entry goes onto the list that is there, and undoes nothing.
    return settled(target, work, unless_overtaken=False)


def _read(
    target: Target,
    name: str,
    verify: Callable[[bytes, bytes, KeySlot, WallMs], Verified[SignedList]],
    slot: KeySlot,
    now: WallMs,
) -> Verified[SignedList] | None:
    """The list that is there, verified: adding to one that somebody tampered with would sign what they put in."""
    content = target.read(name)
    if content is None:
        return None
    signature = target.read(name + SIGNATURE)
    if signature is None:
        raise UnsignedListError(where=target.where, name=name)
    try:
        return verify(content, signature, slot, now)
    except ArtifactError as error:
        raise UnprovenError(where=target.where, name=name, problem=str(error)) from error
