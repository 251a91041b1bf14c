"""Mint enrolment tokens, and keep the two signed lists that go with a fleet: allowed nonces and revocations.

A token is worth nothing until its nonce is on the allow-list, so the list is published first: if anything fails
between the two, there is a nonce that nobody holds, which expires.
"""

import base64
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import attrs

from evidence.artifacts import SCHEMA_VERSION, Verified, verify_nonces, verify_revocations
from evidence.canonical import ARTIFACT_LIMIT, canonicalize
from evidence.documents import encode, is_host_name
from evidence.regular_files import read_start
from evidence.signature import Algorithm
from evidence.tokens import NONCE_SIZE, TOKEN_VERSION, TokenClaims, nonce_entry
from evidence.trust import KeySlot
from nixfleet.errors import ConfigurationError
from nixfleet.release.publish import ClockBehindError, header, sign_file, slot_of
from nixfleet.release.sign import Signer
from nixfleet.release.staging import SIGNATURE, finish_interrupted, locked, publish_files
from state_machine.intent import BootstrapNonce, BootstrapNonces, Revocation, Revocations
from state_machine.values import HostName, WallMs
from wire.json_value import JsonObject

SignedList = TypeVar("SignedList", BootstrapNonces, Revocations)

_SIGNATURE_READ: Final = 4096


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


def allow_nonce(nonces_file: Path, entry: BootstrapNonce, ci_key: Signer, now: WallMs, trusted: KeySlot | None) -> int:
    """Put a nonce on the signed allow-list, drop the expired ones, sign and publish it. Returns how many are on it.

    Raises:
        EvidenceError: the list that is there does not verify under `trusted` (default: the CI key itself).
        ClockBehindError, BusyError: as the names say.
    """

    def extended(old: BootstrapNonces | None) -> BootstrapNonces:
        kept = [known for known in (old.bootstrap_nonces if old else ()) if known.expires_at > now]
        return BootstrapNonces(schema_version=SCHEMA_VERSION, bootstrap_nonces=(*kept, entry), meta=header(ci_key, now))

    return len(_rewrite(nonces_file, verify_nonces, extended, ci_key, now, trusted).bootstrap_nonces)


def revoke(
    revocations_file: Path, revocation: Revocation, ci_key: Signer, now: WallMs, trusted: KeySlot | None
) -> Revocations:
    """Put a host on the signed list of revocations, or move its instant forward, sign and publish the list.

    Raises:
        HostNameError: the host's name is none.
        EvidenceError, ClockBehindError, BusyError: as `allow_nonce`.
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

    return _rewrite(revocations_file, verify_revocations, extended, ci_key, now, trusted)


def _rewrite(
    path: Path,
    verify: Callable[[bytes, bytes, KeySlot, WallMs], Verified[SignedList]],
    extended: Callable[[SignedList | None], SignedList],
    signer: Signer,
    now: WallMs,
    trusted: KeySlot | None,
) -> SignedList:
    with locked(path.parent):
        finish_interrupted(path.parent)
        old = _read(path, verify, trusted if trusted is not None else slot_of(signer), now)
        if old is not None and now < old.signed_at:
            raise ClockBehindError(what=path.name, now=now, signed_at=old.signed_at)
        new = extended(old.value if old is not None else None)
        publish_files(path.parent, sign_file(path.name, encode(new), signer))
        return new


def _read(
    path: Path,
    verify: Callable[[bytes, bytes, KeySlot, WallMs], Verified[SignedList]],
    slot: KeySlot,
    now: WallMs,
) -> Verified[SignedList] | None:
    """The list that is there, verified: adding to one that somebody tampered with would sign what they put in."""
    if not path.exists():
        return None
    signature = read_start(path.with_name(path.name + SIGNATURE), _SIGNATURE_READ)
    return verify(read_start(path, ARTIFACT_LIMIT), signature, slot, now)
