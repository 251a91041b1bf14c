"""An entry's body: what is sealed, and how it is read back.

    {"n", "prev", "host", "journal": <random id>, "event": {...}, "facts": [{"rollout_id", ...}, ...]}

The event in the form of `wire.records`, each fact in its wire form with the rollout beside it.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from evidence.chain import Anchor, SealedEntry, seal
from evidence.errors import EvidenceError
from evidence.host_key import HostKey
from nixfleet_agent.journal.errors import CorruptJournalError, NewerJournalError, UnwritableEventError
from nixfleet_agent.journal.schema import blob, reading
from state_machine.events import Event
from state_machine.facts import RolloutFact
from state_machine.values import HostName
from wire.errors import WireError
from wire.json_value import JsonObject, JsonValue
from wire.records import decode_event, decode_rollout_fact, encode_event, encode_rollout_fact

ENTRY_COLUMNS: Final = "n, body, hash, signature"

Batch = tuple[Event, tuple[RolloutFact, ...]]
"""What becomes one entry: an event and the facts it produced."""


@attrs.frozen(kw_only=True)
class Author:
    """Who writes, and in which journal."""

    host_key: HostKey
    hostname: HostName
    journal_id: str


@attrs.frozen(kw_only=True)
class Record:
    """An entry as it was meant."""

    n: int
    event: Event
    facts: tuple[RolloutFact, ...]


def sealed(author: Author, head: Anchor, event: Event, facts: tuple[RolloutFact, ...]) -> SealedEntry:
    """The entry that follows `head`.

    Raises:
        UnwritableEventError: it has no canonical form or is too large.
    """
    encoded: list[JsonValue] = [encode_rollout_fact(fact) for fact in facts]
    body: JsonObject = {
        "n": head.n + 1,
        "prev": head.hash.hex(),
        "host": author.hostname,
        "journal": author.journal_id,
        "event": encode_event(event),
        "facts": encoded,
    }
    try:
        return seal(author.host_key, body)
    except EvidenceError as error:
        raise UnwritableEventError(kind=type(event).__name__, problem=error.detail) from error


def sealed_entries(db: sqlite3.Connection, path: Path, from_n: int) -> Iterator[SealedEntry]:
    """Entries as stored, from number `from_n` on, one at a time. Nothing in them is believed.

    Raises:
        CorruptJournalError, UnreadableJournalError: SQLite cannot read on.
    """
    with reading(path):
        rows = db.execute(f"SELECT {ENTRY_COLUMNS} FROM entries WHERE n >= ? ORDER BY n", (from_n,))
        for n, body, digest, signature in rows:
            yield SealedEntry(n=n, body=blob(body), hash=blob(digest), signature=blob(signature))


def linked_bodies(db: sqlite3.Connection, path: Path, after: Anchor) -> Iterator[tuple[int, dict[str, Any]]]:
    """The bodies of the entries that follow `after`, each found whole and linked to the one before.

    Raises:
        CorruptJournalError: one is not.
    """
    for entry in sealed_entries(db, path, after.n + 1):
        body = whole_body(path, entry)
        if entry.n != after.n + 1 or body.get("prev") != after.hash.hex():
            raise CorruptJournalError(path=path, problem=f"entry {entry.n} does not follow entry {after.n}")
        yield entry.n, body
        after = entry.anchor


def whole_body(path: Path, entry: SealedEntry) -> dict[str, Any]:
    """The body of an entry whose bytes are what was hashed.

    Raises:
        CorruptJournalError: they are not.
    """
    if hashlib.sha256(entry.body).digest() != entry.hash:
        raise CorruptJournalError(path=path, problem=f"entry {entry.n} is not what was written")
    try:
        body = json.loads(entry.body)
    except (ValueError, RecursionError) as error:
        raise CorruptJournalError(path=path, problem=f"entry {entry.n} is not JSON") from error
    if not isinstance(body, dict):
        raise CorruptJournalError(path=path, problem=f"entry {entry.n} is not an object")
    return body


def event_of(path: Path, n: int, body: dict[str, Any]) -> Event:
    """The event of an entry that is whole.

    Raises:
        NewerJournalError: this version cannot read it.
    """
    try:
        return decode_event(body.get("event"))
    except WireError as error:
        raise NewerJournalError(path=path, problem=f"event of entry {n}: {error.detail}") from error


def facts_of(path: Path, n: int, body: dict[str, Any]) -> tuple[RolloutFact, ...]:
    """The facts of an entry that is whole.

    Raises:
        NewerJournalError: this version cannot read one.
    """
    encoded = body.get("facts")
    try:
        return tuple(decode_rollout_fact(fact) for fact in (encoded if isinstance(encoded, list) else ()))
    except WireError as error:
        raise NewerJournalError(path=path, problem=f"facts of entry {n}: {error.detail}") from error
