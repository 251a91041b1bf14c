"""Facts as they leave the journal: in order, in portions, always the same.

`prev` links a fact to the newest earlier entry that holds any facts, of whatever rollout. A receiver that keeps them
can tell when something between was withheld. It does not change when a fact is sent again, nor when older entries are
pruned: the anchor remembers the last one that was cut off.
"""

import sqlite3
from pathlib import Path
from typing import Final

import attrs

from evidence.chain import SealedEntry
from nixfleet_agent.journal.entries import ENTRY_COLUMNS, facts_of, whole_body
from nixfleet_agent.journal.errors import CorruptJournalError
from nixfleet_agent.journal.marks import start_of
from nixfleet_agent.journal.schema import blob, reading, snapshot
from state_machine.facts import Fact
from state_machine.values import RolloutId

PORTION_MAX: Final = 500
PORTION_BYTES: Final = 1024 * 1024
"""A portion ends with the fact that reaches this many bytes of entries."""

LAST_FACTS: Final = "last_facts"
"""The anchor's member for the hash of the newest cut-off entry that held facts."""

_PORTION: Final = f"""
    SELECT {ENTRY_COLUMNS}, seq, idx,
        (SELECT hash FROM entries AS older WHERE older.n = (SELECT max(n) FROM facts WHERE facts.n < entries.n))
    FROM (SELECT n AS at, seq, idx FROM facts WHERE rollout = ? AND seq >= ? ORDER BY seq LIMIT ?)
    JOIN entries ON entries.n = at ORDER BY seq
"""


@attrs.frozen(kw_only=True)
class StoredFact:
    """A fact, the number of its entry, and the hex hash of the entry with facts before that one, if there is any."""

    fact: Fact
    prev: str | None
    n: int


def facts_from(
    db: sqlite3.Connection, path: Path, rollout_id: RolloutId, from_seq: int, limit: int
) -> list[StoredFact]:
    """Facts of a rollout from `from_seq` on: at most `limit`, and no more than fit a portion.

    Raises:
        CorruptJournalError: an entry is not what was written.
    """
    portion: list[StoredFact] = []
    size = 0
    with reading(path), snapshot(db):
        before_all = cut_off(db, path)
        for row in db.execute(_PORTION, (rollout_id, from_seq, min(limit, PORTION_MAX))):
            n, body, digest, signature, seq, idx, prev = row
            entry = SealedEntry(n=n, body=blob(body), hash=blob(digest), signature=blob(signature))
            fact = _fact_at(path, entry, idx, seq)
            portion.append(StoredFact(fact=fact, prev=before_all if prev is None else blob(prev).hex(), n=n))
            size += len(entry.body)
            if size >= PORTION_BYTES:
                break
    return portion


def cut_off(db: sqlite3.Connection, path: Path) -> str | None:
    """The hex hash of the newest pruned entry that held facts."""
    _, mark = start_of(db, path)
    last = None if mark is None else mark.rest.get(LAST_FACTS)
    return last if isinstance(last, str) else None


def _fact_at(path: Path, entry: SealedEntry, idx: object, seq: int) -> Fact:
    facts = facts_of(path, entry.n, whole_body(path, entry))
    if type(idx) is not int or idx >= len(facts) or facts[idx].fact.seq != seq:
        raise CorruptJournalError(path=path, problem=f"fact {seq} is not where it should be, in entry {entry.n}")
    return facts[idx].fact
