"""The database file: one append-only log, and one table of JSON documents for each kind of derived row.

`user_version` is the schema's number. An older file is brought forward step by step, a newer one is refused untouched.
The log's triggers refuse what would change history, whoever asks.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from control_plane.book import Book
from control_plane.entries import Entry
from control_plane.errors import DatabaseOpenError, NewerSchemaError
from control_plane.records import decode_entry, decode_row, encode_row
from control_plane.rows import TABLES, Change, Drop, Key, Put, Row, Table, key_of
from state_machine.values import WallMs

SCHEMA_VERSION: Final = 1

_REBUILD_BATCH: Final = 10_000

_LOG: Final = """
CREATE TABLE log (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    hostname TEXT,
    rollout_id TEXT,
    seq INTEGER,
    body TEXT NOT NULL
);
CREATE INDEX log_by_rollout ON log (rollout_id, id) WHERE rollout_id IS NOT NULL;
CREATE UNIQUE INDEX log_facts ON log (hostname, rollout_id, seq) WHERE seq IS NOT NULL;
CREATE TRIGGER log_is_never_changed BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_is_never_cut BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
"""

INSERT_LOG: Final = "INSERT INTO log (at_ms, kind, hostname, rollout_id, seq, body) VALUES (?, ?, ?, ?, ?, ?)"


def open_database(path: Path) -> sqlite3.Connection:
    """A connection with durable writes, its schema current. Transactions are the caller's.

    Raises:
        NewerSchemaError: a later version wrote the file.
        DatabaseOpenError: it cannot be opened, or is no database.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        # SQLite would put its journal beside a device before it finds out.
        raise DatabaseOpenError(path=path, problem="it is not a file")
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise DatabaseOpenError(path=path, problem=str(error)) from error
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A second connection that can only read."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > SCHEMA_VERSION:
        raise NewerSchemaError(path=path, found=found, known=SCHEMA_VERSION)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA busy_timeout = 1000")
    if found == 0:
        tables = "".join(map(_create, TABLES.values()))
        connection.executescript(f"BEGIN IMMEDIATE; {_LOG} {tables} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _create(table: Table) -> str:
    columns = ", ".join(f"{key} TEXT NOT NULL" for key in table.keys)
    keys = ", ".join(table.keys)
    return f"CREATE TABLE {table.name} ({columns}, document TEXT NOT NULL, PRIMARY KEY ({keys})) WITHOUT ROWID;"


def write_changes(connection: sqlite3.Connection, changes: Iterable[Change]) -> None:
    """Bring the derived tables up to `changes`. Of several changes to one row only the last is written."""
    last: dict[tuple[type[Row], Key], Change] = {}
    for change in changes:
        match change:
            case Put(row=row):
                last[type(row), key_of(row)] = change
            case Drop(row_type=row_type, key=key):
                last[row_type, key] = change
    for (row_type, key), change in last.items():
        table = TABLES[row_type]
        if isinstance(change, Put):
            marks = ", ".join("?" * (len(key) + 1))
            connection.execute(f"REPLACE INTO {table.name} VALUES ({marks})", (*key, encode_row(change.row)))
        else:
            match_key = " AND ".join(f"{column} = ?" for column in table.keys)
            connection.execute(f"DELETE FROM {table.name} WHERE {match_key}", key)


def load_book(connection: sqlite3.Connection) -> Book:
    """The book as the derived tables have it."""
    book = Book()
    for row_type, table in TABLES.items():
        for (document,) in connection.execute(f"SELECT document FROM {table.name}"):
            book.put(decode_row(row_type, document))
    return book


def read_log(connection: sqlite3.Connection) -> Iterator[tuple[Entry, WallMs]]:
    """Every entry there is, oldest first, with its time."""
    for kind, body, at_ms in connection.execute("SELECT kind, body, at_ms FROM log ORDER BY id"):
        yield decode_entry(kind, body), WallMs(at_ms)


def rebuild(connection: sqlite3.Connection) -> int:
    """Derive every table anew from the log, in one transaction. Returns how many entries there were."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table in TABLES.values():
            connection.execute(f"DROP TABLE IF EXISTS {table.name}")
            connection.execute(_create(table))
        book, entries, changes = Book(), 0, []
        for entry, at in read_log(connection):
            changes.extend(book.apply(entry, at))
            entries += 1
            if len(changes) > _REBUILD_BATCH:
                write_changes(connection, changes)
                changes.clear()
        write_changes(connection, changes)
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return entries
