"""Take a host's facts: in order, once, each proved to be the host's as far as its key is declared.

What is answered, and when (protocol, Part A): 204 once the fact is on the disk, or when the very same fact already is.
409 with `want_seq` for a gap. 409 for a fact that the lifecycle does not admit and 422 for one that cannot be read:
both are final, so the number counts as used and the next one is taken, or the host's delivery would stand still for
ever. 409 `conflict` for another fact under a number that is taken. 403 when the signature is missing or wrong: nothing
is used up, and the host may come again once its declared key is right.
"""

import sqlite3
from collections import Counter
from typing import Final, assert_never, cast

import attrs

from control_plane import mirrors
from control_plane.entries import FactAccepted, FactRefused
from control_plane.errors import RequestRefusedError
from control_plane.ledger import Ledger
from control_plane.rows import Mirror, Rollout
from control_plane.shelf import Held, Shelf
from evidence.canonical import canonicalize
from evidence.signature import PublicKey, verify
from evidence.ssh_format import SshFormatError, parse_openssh_public
from state_machine.facts import Fact
from state_machine.intent import Fleet
from state_machine.lifecycle import HostRollout, Illegal, OutOfOrder
from state_machine.values import HostName, Reason, RolloutId, Source, is_rollout_id
from wire.codec import decode_fact, encode_fact
from wire.errors import WireError
from wire.json_value import JsonObject

UNPLANNED_LIMIT: Final = 256
"""How many rollouts without a manifest one host may tell of: its own history, and no more than that."""

CONFLICT: Final = "conflict"
ILLEGAL: Final = "illegal"
GAP: Final = "gap"
PRUNED: Final = "pruned"


@attrs.frozen(kw_only=True)
class Received:
    """An envelope that names its rollout and number; its fact may still be unreadable. `text` is canonical JSON."""

    hostname: HostName
    rollout_id: RolloutId
    seq: int
    event: JsonObject
    text: str
    signature: str | None
    prev: str | None
    concluded_from: Source | None = None


def concluded(hostname: HostName, rollout_id: RolloutId, fact: Fact, source: Source) -> Received:
    """A fact made here of what a host said in the words of `source`, which has none of its own. Nobody signed it."""
    event = encode_fact(fact)
    return Received(
        hostname=hostname,
        rollout_id=rollout_id,
        seq=fact.seq,
        event=event,
        text=canonicalize(event).decode(),
        signature=None,
        prev=None,
        concluded_from=source,
    )


def read_envelope(body: JsonObject) -> Received:
    """An envelope's outside.

    Raises:
        RequestRefusedError: 422, it has no place in any history.
    """
    event, rollout_id = body.get("event"), body.get("rolloutId")
    if not isinstance(event, dict):
        raise _malformed("the envelope has no event")
    if not isinstance(rollout_id, str) or not is_rollout_id(rollout_id):
        raise _malformed("rolloutId is not a rollout id")
    seq = event.get("seq")
    if type(seq) is not int or seq < 1:
        raise _malformed("event.seq is not a number from 1 on")
    return Received(
        hostname=HostName(str(body.get("hostname"))),
        rollout_id=RolloutId(rollout_id),
        seq=seq,
        event=event,
        text=canonicalize(event).decode(),
        signature=_text(body, "signature"),
        prev=_text(body, "prev"),
    )


class Ingest:
    """Folds what hosts send into their mirrors."""

    def __init__(self, *, ledger: Ledger, shelf: Shelf, require_evidence: bool) -> None:
        self._ledger, self._shelf, self._require_evidence = ledger, shelf, require_evidence
        self._keys_of: Held[Fleet] | None = None
        self._keys: dict[HostName, PublicKey | None] = {}
        """The keys that the fleet in force declares, as far as they were asked for."""
        self.accepted = 0
        self.refused: Counter[str] = Counter()

    async def accept(self, received: Received) -> None:
        """Make the fact part of the host's mirror. Returns when it is on the disk.

        Raises:
            RequestRefusedError: it is not taken; the module's docstring says how.
            StoreUnavailableError: it could not be kept; it may be sent again.
        """
        try:
            await self._accept(received)
        except RequestRefusedError as refusal:
            self.refused[refusal.reason] += 1
            raise
        self.accepted += 1

    async def _accept(self, received: Received) -> None:
        verified = self._check_signature(received)
        rollout, mirror = self._ledger.book.place_of(received.rollout_id, received.hostname, self._ledger.now())
        if rollout.pruned_at is not None or received.seq <= mirror.record.last_seq:
            await self._again(received, pruned=rollout.pruned_at is not None)
            return
        if received.seq > mirror.record.last_seq + 1:
            raise _gap(mirror, received.seq)
        self._check_room(rollout, received.hostname)
        try:
            fact = self._admissible(mirror, received)
        except RequestRefusedError as refusal:
            await self._refuse(received, refusal)
            raise
        entry = FactAccepted(
            hostname=received.hostname,
            rollout_id=received.rollout_id,
            seq=received.seq,
            event=received.text,
            signature=received.signature,
            prev=received.prev,
            verified=verified,
            concluded_from=received.concluded_from,
        )
        await self._ledger.record(entry, fact=fact).committed()

    def _admissible(self, mirror: Mirror, received: Received) -> Fact:
        """The fact, if it can be read and the lifecycle admits it.

        Raises:
            RequestRefusedError: it is refused for good.
        """
        try:
            fact = decode_fact(received.event)
        except WireError as error:
            raise _malformed(error.detail) from error
        refusal = _objection_of_lifecycle(mirror.record, fact)
        if refusal is not None:
            raise refusal
        return fact

    async def _refuse(self, received: Received, refusal: RequestRefusedError) -> None:
        entry = FactRefused(
            hostname=received.hostname,
            rollout_id=received.rollout_id,
            seq=received.seq,
            event=received.text,
            status=refusal.status,
            reason=refusal.reason,
            detail=refusal.error,
        )
        await self._ledger.record(entry).committed()

    async def _again(self, received: Received, *, pruned: bool) -> None:
        """A number that was there before: fine if it is the same fact, with the answer it got then."""
        await self._ledger.flushed()  # its first arrival may still be on its way to the disk
        key = (received.hostname, received.rollout_id, received.seq)
        row = await self._ledger.store.read(lambda reader: _logged(reader, key))
        if row is None and pruned:
            raise RequestRefusedError(status=409, reason=PRUNED, error="the rollout is past its retention here")
        if row is None or row[0] != received.text:
            raise RequestRefusedError(
                status=409,
                reason=CONFLICT,
                error=f"another fact was taken as number {received.seq} of {received.rollout_id}",
            )
        _, status, reason, detail = row
        if status is not None:
            raise RequestRefusedError(status=status, reason=reason, error=detail)

    def _check_signature(self, received: Received) -> bool:
        """True when the host's declared key signed the fact, False when nobody can tell.

        Raises:
            RequestRefusedError: 403, it is signed by somebody else, or should be signed and is not.
        """
        key = self._declared_key(received.hostname)
        if received.signature is None or key is None:
            if self._require_evidence:
                missing = "signature" if received.signature is None else "host key in the fleet"
                raise RequestRefusedError(status=403, reason=Reason.NOT_SIGNED, error=f"there is no {missing}")
            return False
        if not verify(key, received.text.encode(), _hex(received.signature)):
            raise RequestRefusedError(
                status=403,
                reason=Reason.BAD_SIGNATURE,
                error="the fact is not signed by the host key that the fleet declares",
            )
        return True

    def _declared_key(self, hostname: HostName) -> PublicKey | None:
        fleet = self._shelf.fleet
        if fleet is not self._keys_of:
            self._keys_of, self._keys = fleet, {}
        if hostname not in self._keys:
            self._keys[hostname] = declared_key(self._shelf, hostname)
        return self._keys[hostname]

    def _check_room(self, rollout: Rollout, hostname: HostName) -> None:
        book = self._ledger.book
        if rollout.manifest_digest is not None or book.get(Mirror, rollout.rollout_id, hostname) is not None:
            return
        unplanned = sum(1 for row in book.all(Mirror) if row.hostname == hostname and not row.planned)
        if unplanned >= UNPLANNED_LIMIT:
            raise RequestRefusedError(
                status=409, reason="too-many-rollouts", error=f"{unplanned} rollouts of this host have no manifest here"
            )


def declared_key(shelf: Shelf, hostname: HostName) -> PublicKey | None:
    """The host key that the fleet in force declares; None when it declares none that can be used."""
    host = shelf.fleet.value.hosts.get(hostname) if shelf.fleet is not None else None
    if host is None or host.pubkey is None:
        return None
    try:
        return PublicKey.ed25519(parse_openssh_public(host.pubkey))
    except SshFormatError:
        return None


def _objection_of_lifecycle(record: HostRollout, fact: Fact) -> RequestRefusedError | None:
    after = mirrors.folded(record, fact)
    match after:
        case HostRollout():
            return None
        case Illegal(kind=kind, why=why):
            return RequestRefusedError(status=409, reason=ILLEGAL, error=f"{kind}: {why}")
        case OutOfOrder(expected=expected):
            return RequestRefusedError(status=409, reason=GAP, error="out of order", want_seq=expected)
        case _:
            assert_never(after)


def _gap(mirror: Mirror, seq: int) -> RequestRefusedError:
    want = mirror.record.last_seq + 1
    return RequestRefusedError(
        status=409,
        reason=GAP,
        error=f"number {seq} came while {want} is missing: send again from {want}",
        want_seq=want,
    )


def _malformed(detail: str) -> RequestRefusedError:
    return RequestRefusedError(status=422, reason=Reason.PARSE, error=detail)


def _text(body: JsonObject, member: str) -> str | None:
    value = body.get(member)
    if value is not None and not isinstance(value, str):
        raise _malformed(f"{member} is not a text")
    return value


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _logged(reader: sqlite3.Connection, key: tuple[str, str, int]) -> tuple[str, int | None, str, str] | None:
    """The event text under this number, with status, reason and detail if it was refused."""
    row = reader.execute(
        "SELECT json_extract(body, '$.event'), json_extract(body, '$.status'), json_extract(body, '$.reason'),"
        " json_extract(body, '$.detail') FROM log WHERE hostname = ? AND rollout_id = ? AND seq = ?",
        key,
    ).fetchone()
    return cast(tuple[str, int | None, str, str] | None, row)
