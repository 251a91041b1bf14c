"""The file: how it is opened, which version it has, and what its tables are.

    journal(id)                                               one row: the random name of this journal
    entries(n, kind, at_ms, rollout, hash, signature, body)   the chain; the columns before `hash` repeat the body
    facts(rollout, seq, n, idx)                               where each fact lies; derivable from `entries`
    checkpoints(n, body, signature)                           the state after entry `n`, signed
    anchor(n, body, signature)                                at most one row: what lay before the first entry

`user_version` is the schema's number. A file with a higher one is never opened for writing, so it stays as it was.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nixfleet_agent.journal.errors import (
    CorruptJournalError,
    NewerJournalError,
    UnreadableJournalError,
    read_error,
    write_error,
)

SCHEMA_VERSION: Final = 1
MAGIC: Final = b"SQLite format 3\x00"
BUSY_TIMEOUT_MS: Final = 2000
"""Nobody else has reason to write; somebody with a database tool may hold it for a moment."""

CACHE_KIB: Final = 512


def wal_path(path: Path) -> Path:
    """Where SQLite keeps what is committed but not yet in the file itself."""
    return path.with_name(f"{path.name}-wal")


def shm_path(path: Path) -> Path:
    """Where SQLite keeps its index of the former while the file is open."""
    return path.with_name(f"{path.name}-shm")


def version_of(path: Path) -> int | None:
    """The schema version of the journal at `path`, or None when there is none yet. Touches nothing.

    Raises:
        NewerJournalError: it is higher than this agent knows.
        CorruptJournalError: the file is not a database.
        UnreadableJournalError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableJournalError(path=path, problem=(error.strerror or str(error)).lower()) from error
    if not head:
        return None
    if head != MAGIC:
        raise CorruptJournalError(path=path, problem="it is not an SQLite database")
    with contextlib.closing(_open_without_trace(path)) as db, reading(path):
        version: int = db.execute("PRAGMA user_version").fetchone()[0]
        [tables] = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if version > SCHEMA_VERSION:
        problem = f"it has schema version {version}, this agent knows up to {SCHEMA_VERSION}"
        raise NewerJournalError(path=path, problem=problem)
    if version == 0 and tables:
        raise CorruptJournalError(path=path, problem="it is a database of something else")
    return version


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing in the file, beside a running agent or alone, on a writable disk or not.

    Raises:
        CorruptJournalError, UnreadableJournalError: it cannot be read.
    """
    try:
        return _connect(path, "mode=ro")
    except sqlite3.Error as error:
        found = read_error(path, error)
        if isinstance(found, CorruptJournalError) or _size(wal_path(path)) > 0:
            raise found from error
    # In a directory that cannot be written SQLite makes no index, but then nobody writes the file either. Only a log
    # with something in it must not be passed over: without it the file may look damaged.
    return _open_immutable(path)


def _open_without_trace(path: Path) -> sqlite3.Connection:
    # Without a log nobody has the file open, and then SQLite need not make one to look inside.
    return open_read_only(path) if wal_path(path).exists() else _open_immutable(path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _open_immutable(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path, "mode=ro&immutable=1")
    except sqlite3.Error as error:
        raise read_error(path, error) from error


def open_writable(path: Path) -> sqlite3.Connection:
    """A connection that commits durably: a commit that returned survives a power cut.

    Raises:
        JournalWriteError: the file or its directory cannot be written.
        CorruptJournalError: the file is damaged.
    """
    try:
        db = _connect(path, "mode=rw")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
    except sqlite3.Error as error:
        found = read_error(path, error)
        raise (found if isinstance(found, CorruptJournalError) else write_error(path, error)) from error
    return db


@contextlib.contextmanager
def writing(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    """One transaction: all of it is on the disk when the block has been left, or none of it.

    Raises:
        JournalWriteError: none of it.
    """
    try:
        if db.in_transaction:
            db.execute("ROLLBACK")  # left over from an attempt that could not even be taken back
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except sqlite3.IntegrityError:
        raise  # two entries or facts of one number: a defect, not the disk's fault
    except sqlite3.Error as error:
        raise write_error(path, error) from error
    finally:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # the first error counts; see above for the rest
                db.execute("ROLLBACK")


@contextlib.contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Everything read in the block is of one instant, whatever is written meanwhile."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("COMMIT")


def blob(value: object) -> bytes:
    """What a column of bytes holds. SQLite keeps any type in any column, and what is damaged may hold any."""
    match value:
        case bytes():
            return value
        case str():
            return value.encode("utf-8", "replace")
        case _:
            return b""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name what SQLite finds wrong while it reads.

    Raises:
        CorruptJournalError, UnreadableJournalError: it found something.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise read_error(path, error) from error


def _connect(path: Path, options: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{options}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        db.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
        db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error:
        db.close()
        raise
    return db
