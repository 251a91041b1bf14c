"""Trust roots: which keys may sign, and from when on their signatures count (protocol section 2.1).

`trust.json` is deployed with the host and is not signed: whoever may write it may do anything here. A key in it that
this software cannot use is skipped, never an error by itself, so that a new algorithm can be rolled out.
"""

import functools
from pathlib import Path
from typing import ClassVar, Final

import attrs

from evidence import documents
from evidence.canonical import CanonicalError, parse
from evidence.errors import EvidenceError
from evidence.regular_files import read_start
from evidence.signature import Algorithm, PublicKey
from state_machine.values import Reason, WallMs

TRUST_FILE_LIMIT: Final = 1024 * 1024
SCHEMA_VERSION: Final = 1


@attrs.frozen(kw_only=True)
class TrustedKey:
    """A key as declared: `public` is base64, of 32 bytes for ed25519 and of X||Y, 64 bytes, for ecdsa-p256."""

    algorithm: str
    public: str

    @property
    def is_supported(self) -> bool:
        """False for an algorithm this software does not know; the key is then skipped."""
        return self.algorithm in set(Algorithm)

    @property
    def key(self) -> PublicKey | None:
        """The key to verify with; None when its algorithm is unknown or its text is no such key."""
        return PublicKey.from_base64(Algorithm(self.algorithm), self.public) if self.is_supported else None


@attrs.frozen(kw_only=True)
class KeySlot:
    """One role's keys during a rotation. What was signed before `reject_before` no longer counts, whoever signed it."""

    current: TrustedKey | None = None
    previous: TrustedKey | None = None
    reject_before: WallMs | None = None
    successor: TrustedKey | None = None
    retire_at: WallMs | None = None


@attrs.frozen(kw_only=True)
class TrustRoots:
    """`trust.json`: the CI key signs fleets, manifests and lists; the org root signs bootstrap tokens."""

    schema_version: int
    ci_release_key: KeySlot
    org_root_key: KeySlot | None = None
    cache_keys: tuple[str, ...] = ()
    root_ca_pem: str | None = None
    issuance_ca_pems: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class TrustFileError(EvidenceError):
    """The trust file cannot be read, or is not what it should be: half-written, perhaps."""

    reason: ClassVar[Reason] = Reason.NO_TRUST_ROOTS
    path: Path
    problem: str

    def __str__(self) -> str:
        return f"the trust file {self.path} cannot be used ({self.problem}); --trust-file names it"


@attrs.frozen(kw_only=True)
class TrustVersionError(EvidenceError):
    """The trust file is of a version this software does not know."""

    reason: ClassVar[Reason] = Reason.SCHEMA_VERSION
    found: int

    def __str__(self) -> str:
        return f"the trust file has schemaVersion {self.found}, only {SCHEMA_VERSION} is known; update this software"


@functools.lru_cache(maxsize=8)
def parse_trust(data: bytes) -> TrustRoots:
    """Read the text of a trust file. The same text is not taken apart again: it is looked at for every proof.

    Raises:
        CanonicalError, ShapeError: it is not the JSON it should be.
        TrustVersionError: it has another schema version.
    """
    roots = documents.decode(TrustRoots, parse(data, limit=TRUST_FILE_LIMIT))
    if roots.schema_version != SCHEMA_VERSION:
        raise TrustVersionError(found=roots.schema_version)
    return roots


def load_trust(path: Path) -> TrustRoots:
    """Read a trust file.

    Raises:
        TrustFileError: the file is missing, cannot be read, or is not the JSON it should be.
        TrustVersionError: as `parse_trust`.
    """
    try:
        return parse_trust(read_start(path, TRUST_FILE_LIMIT))
    except OSError as error:
        raise TrustFileError(path=path, problem=(error.strerror or str(error)).lower()) from error
    except (CanonicalError, documents.ShapeError) as error:
        raise TrustFileError(path=path, problem=str(error)) from error


def accepted_keys(slot: KeySlot, now_ms: WallMs) -> tuple[TrustedKey, ...]:
    """The keys whose signatures count at `now_ms`, in the order they are tried."""
    successor = slot.successor if slot.retire_at is not None and now_ms < slot.retire_at else None
    return tuple(key for key in (slot.current, slot.previous, successor) if key is not None)


def unusable_keys(roots: TrustRoots) -> tuple[str, ...]:
    """A sentence for every declared key that will never verify anything, for a configuration check to show."""
    slots = {"ciReleaseKey": roots.ci_release_key, "orgRootKey": roots.org_root_key}
    return tuple(
        f"{role}.{place}: {problem}"
        for role, slot in slots.items()
        if slot is not None
        for place in ("current", "previous", "successor")
        if (problem := _problem(getattr(slot, place)))
    )


def _problem(declared: TrustedKey | None) -> str | None:
    if declared is None:
        return None
    if not declared.is_supported:
        return f"algorithm {declared.algorithm!r} is unknown, the key is skipped"
    if (key := declared.key) is None:
        return f"`public` is not the base64 of an {declared.algorithm} key"
    return None if key.is_sound else f"`public` is not a sound {declared.algorithm} key"


# One side of the format's tools writes the first spelling, the other reads the second; neither ever saw the difference.
documents.accept_aliases(TrustRoots, {"rootCAPem": "rootCaPem", "issuanceCAPems": "issuanceCaPems"})
