"""Bootstrap tokens: who may enrol, with which key, until when (protocol sections 8.1 and 3.1).

A token binds a host name to the fingerprint of the host's public key, so a stolen one enrols nothing else. The checks
here need no database; that a nonce is used once is for the control plane to remember. Nonce and signature stay out of
every `repr` and every error, because a token that was not used yet is a secret.
"""

import base64
import re
import secrets
from typing import ClassVar, Final, cast

import attrs

from evidence import documents
from evidence.artifacts import SchemaVersionError, check_not_rejected, prove_bytes
from evidence.canonical import canonicalize, parse
from evidence.errors import EvidenceError
from evidence.host_key import HostKey, fingerprint
from evidence.signature import Algorithm, decode_base64
from evidence.trust import KeySlot
from state_machine.intent import BootstrapNonce, BootstrapNonces
from state_machine.values import HostName, Reason, WallMs
from wire.errors import quoted
from wire.json_value import JsonObject, JsonValue
from wire.timestamps import format_rfc3339

TOKEN_VERSION: Final = 1
TOKEN_LIMIT: Final = 64 * 1024
NONCE_SIZE: Final = 16
DEFAULT_VALIDITY_MS: Final = 24 * 3600 * 1000

_NONCE: Final = re.compile(r"[!-~]{1,128}")


class TokenError(EvidenceError):
    """A token that enrols nobody. Never raised as itself."""


@attrs.frozen(kw_only=True)
class TokenNotYetValidError(TokenError):
    """Issued in the future."""

    reason: ClassVar[Reason] = Reason.FUTURE_DATED
    issued_at: WallMs

    def __str__(self) -> str:
        return f"the token counts only from {format_rfc3339(self.issued_at)} on; check both clocks"


@attrs.frozen(kw_only=True)
class TokenExpiredError(TokenError):
    """Too old."""

    reason: ClassVar[Reason] = Reason.STALE
    expires_at: WallMs

    def __str__(self) -> str:
        return f"the token expired {format_rfc3339(self.expires_at)}; mint a new one"


@attrs.frozen(kw_only=True)
class NonceNotAllowedError(TokenError):
    """The signed allow-list does not have the token's nonce for its host, or no longer."""

    reason: ClassVar[Reason] = Reason.MISSING
    problem: str

    def __str__(self) -> str:
        return f"the token's nonce {self.problem}; release a list of bootstrap nonces that allows it"


@attrs.frozen(kw_only=True)
class TokenHostError(TokenError):
    """The token is for another host."""

    reason: ClassVar[Reason] = Reason.MANIFEST_MISMATCH
    token_for: HostName
    asked_by: str

    def __str__(self) -> str:
        return f"the token is for {self.token_for}, the request for {quoted(self.asked_by)}"


@attrs.frozen(kw_only=True)
class TokenKeyError(TokenError):
    """The token is for another key."""

    reason: ClassVar[Reason] = Reason.BAD_KEY
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"the token is for the key with fingerprint {self.expected}, the request has {self.found}; "
            "mint a token for the key the host has"
        )


@attrs.frozen(kw_only=True)
class TokenClaims:
    """What the org root vouches for. `expected_pubkey_fingerprint` is base64 of SHA-256 over the raw public key."""

    hostname: HostName
    expected_pubkey_fingerprint: str
    issued_at: WallMs
    expires_at: WallMs
    nonce: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class BootstrapToken:
    """A token as read, not yet checked. `signed` is the canonical form of its claims as they were written."""

    version: int
    claims: TokenClaims
    signature: bytes = attrs.field(repr=False)
    signed: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class _TokenFile:
    version: int
    claims: TokenClaims
    signature: str = attrs.field(repr=False)


def parse_token(data: bytes) -> BootstrapToken:
    """Read a token file.

    Raises:
        CanonicalError, ShapeError: it is not a token.
    """
    return read_token(parse(data, limit=TOKEN_LIMIT))


def read_token(value: JsonValue) -> BootstrapToken:
    """Read a token that came inside another JSON document.

    Raises:
        CanonicalError, ShapeError: it is not a token.
    """
    token = documents.decode(_TokenFile, value)
    if not _NONCE.fullmatch(token.claims.nonce):
        raise documents.ShapeError(path="$.claims.nonce", problem="is empty, too long or not plain text")
    signature = decode_base64(token.signature)
    if signature is None:
        raise documents.ShapeError(path="$.signature", problem="is not base64")
    # Over what was written, not over what was understood: members unknown here are signed as well.
    signed = canonicalize(cast(JsonObject, value)["claims"])
    return BootstrapToken(version=token.version, claims=token.claims, signature=signature, signed=signed)


def check_token(token: BootstrapToken, *, org_root: KeySlot, nonces: BootstrapNonces, now_ms: WallMs) -> None:
    """All that can be said of a token without a database and without the request's key (section 3.1, 3 to 5).

    Raises:
        EvidenceError: as `check_allowed`, `check_window` and `check_signature`, in this order.
    """
    check_allowed(token.claims, nonces, now_ms)
    check_window(token.claims, now_ms)
    check_signature(token, org_root, now_ms)


def check_allowed(claims: TokenClaims, nonces: BootstrapNonces, now_ms: WallMs) -> None:
    """The signed allow-list has the nonce, for this host, and not expired.

    Raises:
        NonceNotAllowedError: it has not.
    """
    entries = [entry for entry in nonces.bootstrap_nonces if entry.nonce == claims.nonce]
    if not entries:
        raise NonceNotAllowedError(problem="is not on the list")
    own = [entry for entry in entries if entry.hostname == claims.hostname]
    if not own:
        raise NonceNotAllowedError(problem="is on the list for another host")
    if all(now_ms >= entry.expires_at for entry in own):
        raise NonceNotAllowedError(problem="is on the list but expired there")


def check_window(claims: TokenClaims, now_ms: WallMs) -> None:
    """`issuedAt` <= now < `expiresAt`.

    Raises:
        TokenNotYetValidError, TokenExpiredError: now lies outside.
    """
    if now_ms < claims.issued_at:
        raise TokenNotYetValidError(issued_at=claims.issued_at)
    if now_ms >= claims.expires_at:
        raise TokenExpiredError(expires_at=claims.expires_at)


def check_signature(token: BootstrapToken, org_root: KeySlot, now_ms: WallMs) -> None:
    """Version 1, signed by the org root, not before its `rejectBefore`. Only ed25519 keys of the slot count.

    Raises:
        SchemaVersionError: another version.
        NoTrustRootsError, UnsupportedAlgorithmError, BadSignatureError: the org root did not sign it.
        RejectedBeforeError: it was issued before the slot's `rejectBefore`.
    """
    if token.version != TOKEN_VERSION:
        raise SchemaVersionError(member="version", found=token.version)
    prove_bytes(token.signed, token.signature, org_root, now_ms, algorithms=frozenset({Algorithm.ED25519}))
    check_not_rejected(token.claims.issued_at, org_root)


def check_request(claims: TokenClaims, *, hostname: str, public: bytes) -> None:
    """The request is for the host and the key the token was minted for (section 3.1, 7).

    Raises:
        TokenHostError, TokenKeyError: it is not.
    """
    if hostname != claims.hostname:
        raise TokenHostError(token_for=claims.hostname, asked_by=hostname)
    found = fingerprint(public)
    if found != claims.expected_pubkey_fingerprint:
        raise TokenKeyError(expected=claims.expected_pubkey_fingerprint, found=found)


def mint_token(
    org_root: HostKey,
    *,
    hostname: HostName,
    public: bytes,
    issued_at: WallMs,
    validity_ms: int = DEFAULT_VALIDITY_MS,
) -> JsonObject:
    """A new token with a random nonce, for the host whose raw ed25519 public key is `public`."""
    claims = TokenClaims(
        hostname=hostname,
        expected_pubkey_fingerprint=fingerprint(public),
        issued_at=issued_at,
        expires_at=WallMs(issued_at + validity_ms),
        nonce=secrets.token_hex(NONCE_SIZE),
    )
    signature = org_root.sign(canonicalize(documents.encode(claims)))
    return documents.encode(
        _TokenFile(version=TOKEN_VERSION, claims=claims, signature=base64.b64encode(signature).decode())
    )


def nonce_entry(claims: TokenClaims, *, minted_by: str | None = None) -> BootstrapNonce:
    """The line that the signed allow-list needs before the token enrols anything."""
    return BootstrapNonce(
        nonce=claims.nonce,
        hostname=claims.hostname,
        expires_at=claims.expires_at,
        minted_at=claims.issued_at,
        minted_by=minted_by,
    )
