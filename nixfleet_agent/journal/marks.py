"""Signed notes beside the chain: the checkpoints, and the anchor where an older part was cut off.

A mark is canonical JSON that names its kind, the journal, the host and an entry by number and hash, signed by the
host key. So neither can be moved to another journal, put at another place or be taken for the other.
"""

import enum
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from evidence.canonical import canonicalize
from evidence.chain import GENESIS, Anchor
from evidence.signature import PublicKey, verify
from nixfleet_agent.journal.entries import Author
from nixfleet_agent.journal.errors import CorruptJournalError
from nixfleet_agent.journal.schema import blob, reading
from wire.json_value import JsonValue


class MarkKind(enum.StrEnum):
    """What a mark says of its entry. Values are the tables' names."""

    CHECKPOINT = "checkpoints"
    """What the state was after it."""
    ANCHOR = "anchor"
    """It and everything before it was removed after delivery."""


@attrs.frozen(kw_only=True)
class Mark:
    """A mark as it was found. `rest` is what its kind adds."""

    anchor: Anchor
    journal_id: str
    rest: Mapping[str, Any]
    body: bytes
    signature: bytes

    def is_by(self, public: bytes) -> bool:
        """True when the owner of the key signed it."""
        return verify(PublicKey.ed25519(public), self.body, self.signature)


def put(db: sqlite3.Connection, author: Author, kind: MarkKind, at: Anchor, rest: Mapping[str, JsonValue]) -> None:
    """Sign and store a mark, within the caller's transaction."""
    body = canonicalize(
        {
            **rest,
            "mark": kind.value,
            "journal": author.journal_id,
            "host": author.hostname,
            "n": at.n,
            "hash": at.hash.hex(),
        }
    )
    row = (at.n, body, author.host_key.sign(body))
    db.execute(f"INSERT OR REPLACE INTO {kind.value} (n, body, signature) VALUES (?, ?, ?)", row)


def find(db: sqlite3.Connection, path: Path, kind: MarkKind) -> list[Mark]:
    """All marks of a kind, newest first. Those that say something else than where they lie are left out."""
    with reading(path):
        rows = db.execute(f"SELECT n, body, signature FROM {kind.value} ORDER BY n DESC").fetchall()
    marks = (_mark(kind, n, blob(body), blob(signature)) for n, body, signature in rows)
    return [mark for mark in marks if mark is not None]


def start_of(db: sqlite3.Connection, path: Path) -> tuple[Anchor, Mark | None]:
    """What the first entry follows, and the mark that says so if an older part was cut off.

    Raises:
        CorruptJournalError: the mark is damaged.
    """
    with reading(path):
        [count] = db.execute("SELECT count(*) FROM anchor").fetchone()
    if not count:
        return GENESIS, None
    marks = find(db, path, MarkKind.ANCHOR)
    if not marks:
        raise CorruptJournalError(path=path, problem="the mark where its older part was cut off is damaged")
    return marks[0].anchor, marks[0]


def _mark(kind: MarkKind, n: int, body: bytes, signature: bytes) -> Mark | None:
    try:
        said = json.loads(body)
        anchor = Anchor(n=said["n"], hash=bytes.fromhex(said["hash"]))
        journal_id = said["journal"]
        if said["mark"] != kind.value or anchor.n != n or not isinstance(journal_id, str):
            return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Mark(anchor=anchor, journal_id=journal_id, rest=said, body=body, signature=signature)
