"""Journal commits: signed, chained, on the disk (`synchronous=FULL`) before the call returns."""

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from benchmarks.core import entries
from benchmarks.running import Run, per_second
from benchmarks.table import Beside, Row, at_least
from evidence.host_key import generate_host_key
from nixfleet_agent.journal.store import Journal
from nixfleet_agent.runtime import BATCH
from state_machine.values import HostName

GROUP = BATCH  # as many as the agent itself puts into one commit


def measure(run: Run) -> Iterator[Row]:
    """Entries a second, one a commit and many a commit, beside SQLite alone writing as many bytes."""
    directory = run.directory("journal")
    seconds = run.of(5, 1)
    with contextlib.closing(
        Journal.open(directory / "journal.sqlite", host_key=generate_host_key(), hostname=HostName("bench"))
    ) as journal:
        batches = entries()

        def append(many: int) -> int:
            return len(journal.append(list(itertools.islice(batches, many))))

        run.say("committing one by one")
        single = per_second(lambda: append(1), seconds)
        run.say("committing in groups")
        grouped = per_second(lambda: append(GROUP), seconds)
    size = _mean_body(directory / "journal.sqlite")
    with contextlib.closing(_plain(directory / "plain.sqlite")) as plain:
        run.say("the same with SQLite alone")
        plain_single = per_second(lambda: _insert(plain, 1, size), seconds / 2)
        plain_grouped = per_second(lambda: _insert(plain, GROUP, size), seconds / 2)
    note = f"entries of {size} bytes on average"
    yield Row(
        name="journal, one entry a commit",
        measured=single,
        unit="entries/s",
        beside=Beside(what="SQLite alone", measured=plain_single),
        aims=(at_least(3_000),),
        note=note,
    )
    yield Row(
        name=f"journal, {GROUP} entries a commit",
        measured=grouped,
        unit="entries/s",
        beside=Beside(what="SQLite alone", measured=plain_grouped),
        aims=(at_least(20_000),),
        note=note,
    )


def _mean_body(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT avg(length(body)) FROM entries").fetchone()[0])


def _plain(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE entries (n INTEGER PRIMARY KEY, body BLOB)")
    return db


def _insert(db: sqlite3.Connection, many: int, size: int) -> int:
    db.execute("BEGIN IMMEDIATE")
    db.executemany("INSERT INTO entries (body) VALUES (?)", [(b"x" * size,)] * many)
    db.execute("COMMIT")
    return many
