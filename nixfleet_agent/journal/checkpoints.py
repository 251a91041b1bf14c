"""Checkpoints: the state as it was after some entry, so that a start does not fold the whole journal.

A checkpoint is only a shortcut. It counts when the host key signed it for this journal, the entry it names is here
with that hash, and this version can read it; otherwise an older one is taken, or none.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from evidence.chain import Anchor
from nixfleet_agent.journal import marks
from nixfleet_agent.journal.entries import Author, event_of, linked_bodies
from nixfleet_agent.journal.errors import CorruptJournalError
from nixfleet_agent.journal.marks import Mark, MarkKind
from nixfleet_agent.journal.schema import blob, reading, writing
from state_machine.events import Event
from state_machine.state import Known
from wire.errors import WireError
from wire.json_value import JsonObject
from wire.records import decode_known, encode_known

STATE_VERSION: Final = 2
"""Raised when `Known` can no longer be read as it was written, or when folding old entries gives another state."""

KEPT: Final = 3
"""Newest checkpoints kept, in case one turns out to be damaged."""


@attrs.frozen(kw_only=True)
class Restored:
    """Where a fold begins. `known` is the state after entry `n` (None: nothing yet), `tail` what came after."""

    known: Known | None
    n: int
    tail: Iterator[tuple[int, Event]]


def save(db: sqlite3.Connection, path: Path, author: Author, head: Anchor, known: Known) -> None:
    """Keep the state after entry `head`, and forget all but the newest few checkpoints and the oldest usable one.

    Raises:
        JournalWriteError: nothing was kept or forgotten.
    """
    rest: JsonObject = {"version": STATE_VERSION, "known": encode_known(known)}
    with writing(db, path):
        marks.put(db, author, MarkKind.CHECKPOINT, head, rest)
        db.execute(
            "DELETE FROM checkpoints WHERE n NOT IN (SELECT n FROM checkpoints ORDER BY n DESC LIMIT ?) "
            "AND n > (SELECT min(n) FROM checkpoints)",
            (KEPT,),
        )


def restore(db: sqlite3.Connection, path: Path, public: bytes | None, *, oldest: bool = False) -> Restored:
    """The newest usable checkpoint and the entries after it; with `oldest`, as much as there is to fold.

    Without a public key, checkpoints are believed unsigned: good enough to show, not to act on. The tail is checked
    link by link while it is read.

    Raises:
        CorruptJournalError: an older part was cut off and no checkpoint says what it amounted to.
    """
    start, _ = marks.start_of(db, path)
    if oldest and start.n == 0:
        return _from(db, path, None, start)
    found = [mark for mark in marks.find(db, path, MarkKind.CHECKPOINT) if _counts(db, path, mark, public, start)]
    if oldest:
        found.reverse()
    current = [mark for mark in found if mark.rest.get("version") == STATE_VERSION]
    # What was cut off can only be had from a checkpoint, even one by a version that folded differently.
    for mark in current if start.n == 0 else (*current, *found):
        try:
            return _from(db, path, decode_known(mark.rest.get("known")), mark.anchor)
        except WireError:
            continue  # by a version that knew other things; an older checkpoint or the entries tell as well
    if start.n > 0:
        problem = f"entries up to {start.n} were cut off, and no checkpoint that counts says what they amounted to"
        raise CorruptJournalError(path=path, problem=problem)
    return _from(db, path, None, start)


def newest(db: sqlite3.Connection, path: Path, public: bytes, start: Anchor) -> int:
    """The number of the entry the newest checkpoint that counts was made after; else where the journal starts."""
    usable = (mark for mark in marks.find(db, path, MarkKind.CHECKPOINT) if _counts(db, path, mark, public, start))
    return next((mark.anchor.n for mark in usable), start.n)


def _from(db: sqlite3.Connection, path: Path, known: Known | None, after: Anchor) -> Restored:
    tail = ((n, event_of(path, n, body)) for n, body in linked_bodies(db, path, after))
    return Restored(known=known, n=after.n, tail=tail)


def _counts(db: sqlite3.Connection, path: Path, mark: Mark, public: bytes | None, start: Anchor) -> bool:
    if public is not None and not mark.is_by(public):
        return False
    with reading(path):
        [journal_id] = db.execute("SELECT id FROM journal").fetchone()
        row = db.execute("SELECT hash FROM entries WHERE n = ?", (mark.anchor.n,)).fetchone()
    here = start.hash if mark.anchor.n == start.n else None if row is None else blob(row[0])
    return mark.journal_id == journal_id and here == mark.anchor.hash
