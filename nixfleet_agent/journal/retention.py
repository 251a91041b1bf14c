"""What may be forgotten: old entries that a checkpoint covers and whose facts have all been delivered.

The oldest entries go first, without gaps. Where they end, an anchor signed by the host key takes their place, so that
the chain can still be verified from there and nobody else can shorten it.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from evidence.chain import Anchor
from nixfleet_agent.journal import marks, outbox
from nixfleet_agent.journal.entries import Author
from nixfleet_agent.journal.errors import write_error
from nixfleet_agent.journal.marks import MarkKind
from nixfleet_agent.journal.schema import blob, reading, writing
from state_machine.values import RolloutId, WallMs

DAY_MS: Final = 86_400_000
ALWAYS_KEPT: Final = 1000
"""Newest entries that stay whatever their age, so that a clock that jumped by decades costs little."""

MOST_AT_ONCE: Final = 10_000
"""Entries removed by one call, so that nothing else waits long for the disk."""


@attrs.frozen(kw_only=True)
class Limits:
    """What is kept at least: entries written at or after `since`, as long as the file has at most `size` bytes."""

    since: WallMs
    size: int


@attrs.frozen(kw_only=True)
class Cut:
    """The last entry that goes, and the hash of the newest among those that go that held facts."""

    anchor: Anchor
    last_facts: str | None


def plan(
    db: sqlite3.Connection,
    path: Path,
    *,
    covered: int,
    limits: Limits,
    delivered: Callable[[RolloutId], int],
) -> Cut | None:
    """Where to cut, or None when everything stays.

    `covered` is the entry of the newest checkpoint; `delivered` gives the last delivered number of a rollout.
    """
    with reading(path):
        [first, head] = db.execute("SELECT min(n), max(n) FROM entries").fetchone()
        if first is None:
            return None
        wanted = max(_last_old(db, head, limits.since), _last_in_excess(db, limits.size, first))
        last = min(wanted, covered, head - ALWAYS_KEPT, first - 1 + MOST_AT_ONCE, _last_delivered(db, head, delivered))
        if last < first:
            return None
        [digest] = db.execute("SELECT hash FROM entries WHERE n = ?", (last,)).fetchone()
        row = db.execute(
            "SELECT hash FROM entries WHERE n = (SELECT max(n) FROM facts WHERE n <= ?)", (last,)
        ).fetchone()
    newest = outbox.cut_off(db, path) if row is None else blob(row[0]).hex()
    return Cut(anchor=Anchor(n=last, hash=blob(digest)), last_facts=newest)


def carry_out(db: sqlite3.Connection, path: Path, author: Author, cut: Cut) -> None:
    """Remove and anchor, in one transaction.

    Raises:
        JournalWriteError: nothing was removed.
    """
    with writing(db, path):
        db.execute("DELETE FROM facts WHERE n <= ?", (cut.anchor.n,))
        db.execute("DELETE FROM entries WHERE n <= ?", (cut.anchor.n,))
        db.execute("DELETE FROM checkpoints WHERE n < ?", (cut.anchor.n,))
        db.execute("DELETE FROM anchor")
        marks.put(db, author, MarkKind.ANCHOR, cut.anchor, {outbox.LAST_FACTS: cut.last_facts})


def give_space_back(db: sqlite3.Connection, path: Path) -> None:
    """Let the file shrink to what it holds.

    Raises:
        JournalWriteError: it did not.
    """
    try:
        if db.execute("PRAGMA freelist_count").fetchone()[0]:
            # A script, because the pragma frees one page a step and `execute` takes only the first.
            db.executescript("PRAGMA incremental_vacuum")
    except sqlite3.Error as error:
        raise write_error(path, error) from error


def _last_old(db: sqlite3.Connection, head: int, since: WallMs) -> int:
    """The entry before the first that is young enough. A clock that stepped back hides nothing young behind it."""
    young = db.execute("SELECT n FROM entries WHERE at_ms >= ? ORDER BY n LIMIT 1", (since,)).fetchone()
    return head if young is None else int(young[0]) - 1


def _last_in_excess(db: sqlite3.Connection, size: int, first: int) -> int:
    """The entry with which enough bytes would go for the rest to fit."""
    page_size, pages, free = (
        int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_size", "page_count", "freelist_count")
    )
    excess = (pages - free) * page_size - size
    last = first - 1
    rows = db.execute("SELECT n, length(body) + 256 FROM entries ORDER BY n LIMIT ?", (MOST_AT_ONCE,))
    while excess > 0 and (row := rows.fetchone()) is not None:
        last, excess = int(row[0]), excess - int(row[1])
    return last


def _last_delivered(db: sqlite3.Connection, head: int, delivered: Callable[[RolloutId], int]) -> int:
    """The entry before the first that holds a fact not delivered."""
    last = head
    for (rollout,) in db.execute("SELECT DISTINCT rollout FROM facts").fetchall():
        query = "SELECT min(n) FROM facts WHERE rollout = ? AND seq > ?"
        [waiting] = db.execute(query, (rollout, delivered(RolloutId(rollout)))).fetchone()
        last = last if waiting is None else min(last, int(waiting) - 1)
    return last
