"""Make the journal's tables, or bring an older file up to date: `python -m nixfleet_agent.journal.migrate PATH`.

A process of its own, so that what only this needs never lives in the daemon. All steps are one transaction: after a
crash the file has the old version or the new one.
"""

import os
import secrets
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs
from sqlite_utils import Database

from nixfleet_agent.files import sync_directory
from nixfleet_agent.journal.errors import EXIT_STATUS, WriteProblem, write_error
from nixfleet_agent.journal.schema import BUSY_TIMEOUT_MS, SCHEMA_VERSION

Migration = Callable[[Database], None]


def _first_tables(db: Database) -> None:
    db.table("journal").create({"id": str}, not_null={"id"})
    db.table("journal").insert({"id": secrets.token_hex(16)})
    db.table("entries").create(
        # The short columns first: what lies behind a long body is slow to reach.
        {"n": int, "kind": str, "at_ms": int, "rollout": str, "hash": bytes, "signature": bytes, "body": bytes},
        pk="n",
        not_null={"body", "hash", "signature", "kind", "at_ms"},
    )
    db.table("facts").create(
        {"rollout": str, "seq": int, "n": int, "idx": int},
        pk=("rollout", "seq"),
        not_null={"n", "idx"},
    )
    db.table("facts").create_index(["n"])
    signed = {"n": int, "body": bytes, "signature": bytes}
    for name in ("checkpoints", "anchor"):
        db.table(name).create(signed, pk="n", not_null={"body", "signature"})


MIGRATIONS: Final[Sequence[Migration]] = (_first_tables,)
"""Step `i` leads from version `i` to `i + 1`."""

assert len(MIGRATIONS) == SCHEMA_VERSION


def migrate(path: Path, steps: Sequence[Migration] = MIGRATIONS) -> None:
    """Run the steps that the file at `path` has not seen. Makes the file, for its owner only, if there is none.

    Raises:
        sqlite3.Error, OSError: it was left as it was.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        # Before the first table, or it has no effect; lets a prune give space back.
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        _run(Database(connection, execute_plugins=False), steps)
        # So that a reader of the bare file, such as an older agent, sees the new version.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    sync_directory(path.parent)


def _run(db: Database, steps: Sequence[Migration]) -> None:
    db.conn.execute("BEGIN IMMEDIATE")
    with_version = int(db.conn.execute("PRAGMA user_version").fetchone()[0])
    try:
        for step in steps[with_version:]:
            step(db)
        db.conn.execute(f"PRAGMA user_version={max(with_version, len(steps))}")
        db.conn.execute("COMMIT")
    finally:
        if db.conn.in_transaction:
            db.conn.execute("ROLLBACK")


@attrs.frozen(kw_only=True)
class _Outcome:
    status: int = 0
    problem: str = ""


def _attempt(path: Path) -> _Outcome:
    try:
        migrate(path)
    except (sqlite3.Error, OSError) as error:
        failure = write_error(path, error)
        return _Outcome(status=EXIT_STATUS[failure.cause or WriteProblem.DEVICE], problem=failure.problem)
    return _Outcome()


def main() -> int:
    """Migrate the file named on the command line; the exit status names what went wrong."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m nixfleet_agent.journal.migrate PATH\n")
        return 2
    outcome = _attempt(Path(sys.argv[1]))
    sys.stderr.write(outcome.problem)
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
