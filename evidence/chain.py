"""The journal's hash chain: what makes edits, cuts, swaps and foreign signatures visible to anyone.

An entry is the canonical bytes of an object that has at least `n` (1, 2, 3, ...), `prev` (SHA-256 of the entry before
it in hex, 64 zeros before the first) and `host`. Beside it lie its hash and the host key's ed25519 signature over the
same bytes. Whoever holds the host's public key can check a chain with `verify_chain` and nothing else. What a host
cannot prove alone is that it did not cut off the end, or sign a second history: for that the chain is held against
what others have seen of it (`witnesses`).
"""

import enum
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import attrs

from evidence.canonical import CanonicalError, JsonLike, canonicalize, parse
from evidence.errors import EvidenceError
from evidence.host_key import HostKey
from evidence.signature import SIGNATURE_SIZE, PublicKey, verify
from state_machine.values import Reason

ENTRY_LIMIT: Final = 1024 * 1024
ZERO_HASH: Final = bytes(32)

_HEX_HASH: Final = re.compile(r"[0-9a-f]{64}")


@attrs.frozen(kw_only=True)
class Anchor:
    """Entry `n` has `hash` (32 bytes): where a cut chain goes on, or what somebody else has seen."""

    n: int
    hash: bytes


GENESIS: Final = Anchor(n=0, hash=ZERO_HASH)
"""What lies before the first entry."""


@attrs.frozen(kw_only=True)
class SealedEntry:
    """One link. All fields are as stored, so in a chain that was tampered with they may contradict one another."""

    n: int
    body: bytes
    hash: bytes
    signature: bytes

    @property
    def anchor(self) -> Anchor:
        """What the next entry points at."""
        return Anchor(n=self.n, hash=self.hash)


@attrs.frozen(kw_only=True)
class EntryError(EvidenceError):
    """A journal entry that lacks what makes it a link."""

    reason = Reason.PARSE
    problem: str

    def __str__(self) -> str:
        return f"not a journal entry: {self.problem}"


class Fault(enum.StrEnum):
    """What is wrong with a link."""

    UNREADABLE = "unreadable"
    NOT_CANONICAL = "not-canonical"
    EDITED = "edited"
    WRONG_HOST = "wrong-host"
    REMOVED = "removed"
    REORDERED = "reordered"
    BROKEN_LINK = "broken-link"
    BAD_SIGNATURE = "bad-signature"
    WRONG_KEY = "wrong-key"
    TAIL_MISSING = "tail-missing"
    REWRITTEN = "rewritten"


@attrs.frozen(kw_only=True)
class ChainFault:
    """The first bad link: `n` is its number as far as that can be told, `position` counts from 1 as it was read."""

    fault: Fault
    n: int
    position: int
    detail: str

    def __str__(self) -> str:
        return f"entry {self.n}: {self.fault}: {self.detail}"


@attrs.frozen(kw_only=True)
class ChainReport:
    """What `verify_chain` found. `good` entries passed, up to and including `head`; then came `fault`, if any."""

    good: int
    head: Anchor
    fault: ChainFault | None = None

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return self.fault is None


def seal(host_key: HostKey, body: Mapping[str, JsonLike]) -> SealedEntry:
    """Make a link of a body that has `n`, `prev` and `host` already.

    Raises:
        EntryError: one of the three is missing or not what it should be, or the entry is too large.
        CanonicalError: the body has no canonical form.
    """
    canonical = canonicalize(dict(body))
    n, _, _ = _link(body)
    if len(canonical) > ENTRY_LIMIT:
        raise EntryError(problem=f"it has {len(canonical)} bytes, more than {ENTRY_LIMIT}")
    return SealedEntry(n=n, body=canonical, hash=hashlib.sha256(canonical).digest(), signature=host_key.sign(canonical))


def verify_chain(
    entries: Iterable[SealedEntry],
    public: bytes,
    *,
    host: str | None = None,
    anchor: Anchor | None = None,
    witnesses: Iterable[Anchor] = (),
) -> ChainReport:
    """Check every link in the order given, up to the first bad one. Never raises on bad data.

    Args:
        entries: The chain; read once, in bounded memory.
        public: The host's raw ed25519 public key.
        host: The name every entry must bear; None accepts the name in the first entry for all.
        anchor: What the first entry must follow, where an older part was cut off; None means the chain is whole.
        witnesses: Entries others have seen, such as what a control plane acknowledged. Each must be in the chain,
            unless it lies before the anchor.
    """
    walk = _Walk(key=PublicKey.ed25519(public), host=host, head=anchor or GENESIS, seen=_by_number(witnesses))
    good = 0
    fault = _contradiction(walk, walk.head, 0)
    stream = iter(entries)
    while fault is None and (entry := next(stream, None)) is not None:
        fault = _fault_of(walk, entry, good + 1, stream) or _contradiction(walk, entry.anchor, good + 1)
        if fault is None:
            walk.head = entry.anchor
            good += 1
    return ChainReport(good=good, head=walk.head, fault=fault or _missing_tail(walk, good))


@attrs.define(kw_only=True)
class _Walk:
    """Where the check stands."""

    key: PublicKey
    host: str | None
    head: Anchor
    seen: dict[int, set[bytes]]


def _by_number(witnesses: Iterable[Anchor]) -> dict[int, set[bytes]]:
    seen: dict[int, set[bytes]] = {}
    for witness in witnesses:
        seen.setdefault(witness.n, set()).add(witness.hash)
    return seen


def _link(body: Mapping[str, object]) -> tuple[int, bytes, str]:
    """The three members that make an object a link: its number, what it follows, whose it is."""
    n, prev, host = body.get("n"), body.get("prev"), body.get("host")
    if type(n) is not int or n < 1:
        raise EntryError(problem="`n` is not a positive integer")
    if not isinstance(prev, str) or not _HEX_HASH.fullmatch(prev):
        raise EntryError(problem="`prev` is not a SHA-256 in lowercase hex")
    if not isinstance(host, str) or not host:
        raise EntryError(problem="`host` is not a name")
    return n, bytes.fromhex(prev), host


def _fault_of(walk: _Walk, entry: SealedEntry, position: int, rest: Iterator[SealedEntry]) -> ChainFault | None:
    def fault(kind: Fault, detail: str) -> ChainFault:
        return ChainFault(fault=kind, n=entry.n, position=position, detail=detail)

    # The hash first: it tells an edit from a forgery, whatever the edit did to the form.
    if hashlib.sha256(entry.body).digest() != entry.hash:
        return fault(Fault.EDITED, "its bytes do not have the hash that was recorded with it")
    try:
        value = parse(entry.body, limit=ENTRY_LIMIT)
        if canonicalize(value) != entry.body:
            return fault(Fault.NOT_CANONICAL, "its bytes are not in canonical form")
        n, prev, host = _link(value if isinstance(value, dict) else {})
    except (CanonicalError, EntryError) as error:
        return fault(Fault.UNREADABLE, error.detail)
    if n != entry.n:
        return fault(Fault.EDITED, f"it is filed under number {entry.n} but says {n}")
    if not verify(walk.key, entry.body, entry.signature):
        return fault(*_signature_fault(walk, entry, position, rest))
    if walk.host is None:
        walk.host = host
    if host != walk.host:
        return fault(Fault.WRONG_HOST, f"it is of host {host[:64]!r}, the chain of {walk.host[:64]!r}")
    if n != walk.head.n + 1:
        return fault(*_order_fault(walk, n, rest))
    if prev != walk.head.hash:
        return fault(Fault.BROKEN_LINK, f"it does not follow the entry {walk.head.n} that is here")
    return None


def _signature_fault(walk: _Walk, entry: SealedEntry, position: int, rest: Iterator[SealedEntry]) -> tuple[Fault, str]:
    # A foreign key spoils every signature, tampering spoils the ones tampered with.
    if position == 1 and (other := next(rest, None)) is not None:
        if not any(verify(walk.key, each.body, each.signature) for each in itertools.chain((other,), rest)):
            return Fault.WRONG_KEY, f"no entry is signed by the key {walk.key.key_id}: this is the chain of another key"
    if len(entry.signature) != SIGNATURE_SIZE:
        return Fault.BAD_SIGNATURE, f"its signature has {len(entry.signature)} bytes instead of {SIGNATURE_SIZE}"
    return Fault.BAD_SIGNATURE, "it was changed after it was signed, or signed with another key"


def _order_fault(walk: _Walk, n: int, rest: Iterator[SealedEntry]) -> tuple[Fault, str]:
    expected = walk.head.n + 1
    if n < expected:
        return Fault.REORDERED, f"it comes after entry {walk.head.n}"
    if any(other.n == expected for other in rest):
        return Fault.REORDERED, f"it comes before entry {expected}"
    missing = f"entry {expected} is" if n == expected + 1 else f"entries {expected} to {n - 1} are"
    return Fault.REMOVED, f"{missing} missing before it"


def _contradiction(walk: _Walk, here: Anchor, position: int) -> ChainFault | None:
    others = walk.seen.get(here.n, set()) - {here.hash}
    if not others:
        return None
    detail = f"it was seen before with hash {min(others).hex()}: there are two histories"
    return ChainFault(fault=Fault.REWRITTEN, n=here.n, position=position, detail=detail)


def _missing_tail(walk: _Walk, good: int) -> ChainFault | None:
    last_seen = max(walk.seen, default=0)
    if last_seen <= walk.head.n:
        return None
    detail = f"entry {last_seen} was seen, but the chain ends with entry {walk.head.n}"
    return ChainFault(fault=Fault.TAIL_MISSING, n=walk.head.n + 1, position=good + 1, detail=detail)
