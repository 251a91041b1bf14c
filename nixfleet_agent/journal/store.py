"""The journal as the daemon writes it: append, remember, hand out facts, forget what is delivered.

The promises: what `append` returned from is on the disk, whole batches only, chained and signed; when it raised, the
file and the chain are as before and the next attempt may succeed; one process writes at a time; a file this version
does not understand is not changed by a byte. The code is synchronous and may be called from any thread: writing and
reading have a connection each, so a fact is never handed out before its commit.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from evidence.chain import Anchor, SealedEntry
from evidence.host_key import HostKey
from evidence.signature import PublicKey, verify
from nixfleet_agent.files import sync_directory
from nixfleet_agent.journal import checkpoints, outbox, retention
from nixfleet_agent.journal.checkpoints import Restored
from nixfleet_agent.journal.entries import Author, Batch, sealed, sealed_entries, whole_body
from nixfleet_agent.journal.errors import (
    CorruptJournalError,
    ForeignJournalError,
    UnreadableJournalError,
    write_error,
)
from nixfleet_agent.journal.lock import take_lock
from nixfleet_agent.journal.marks import start_of
from nixfleet_agent.journal.outbox import StoredFact
from nixfleet_agent.journal.schema import (
    SCHEMA_VERSION,
    open_writable,
    reading,
    shm_path,
    version_of,
    wal_path,
    writing,
)
from nixfleet_agent.journal.upgrade import upgrade
from state_machine.state import Known
from state_machine.values import HostName, RolloutId, WallMs

_INSERT_ENTRY = "INSERT INTO entries (n, kind, at_ms, rollout, hash, signature, body) VALUES (?, ?, ?, ?, ?, ?, ?)"
_INSERT_FACT = "INSERT INTO facts (rollout, seq, n, idx) VALUES (?, ?, ?, ?)"


@attrs.define(kw_only=True, eq=False)
class Journal:
    """An open journal. Make one with `open`, end with `close`."""

    path: Path
    _author: Author
    _lock: int
    _write: sqlite3.Connection
    _read: sqlite3.Connection
    _head: Anchor
    _checkpoint: int
    _writing: threading.Lock = attrs.field(factory=threading.Lock)
    _reading: threading.Lock = attrs.field(factory=threading.Lock)

    @classmethod
    def open(
        cls, path: Path, *, host_key: HostKey, hostname: HostName, make: Callable[[Path], None] = upgrade
    ) -> "Journal":
        """Open the journal at `path` for writing; `make` makes it or brings it up to date if need be.

        Raises:
            JournalBusyError: another process has it open.
            NewerJournalError: it is of a newer version.
            CorruptJournalError: it is damaged.
            ForeignJournalError: another host or key wrote it.
            JournalWriteError: it cannot be written, so it was not opened.
        """
        lock = take_lock(path)
        try:
            return cls._open_locked(path, host_key, hostname, lock, make)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _open_locked(
        cls, path: Path, host_key: HostKey, hostname: HostName, lock: int, make: Callable[[Path], None]
    ) -> "Journal":
        if version_of(path) != SCHEMA_VERSION:
            make(path)
        ended_badly = wal_path(path).exists() and wal_path(path).stat().st_size > 0
        write, read = open_writable(path), open_writable(path)
        try:
            if ended_badly:
                _check_pages(write, path)
            with reading(path):
                [journal_id] = write.execute("SELECT id FROM journal").fetchone()
            author = Author(host_key=host_key, hostname=hostname, journal_id=journal_id)
            start, _ = start_of(write, path)
            return cls(
                path=path,
                author=author,
                lock=lock,
                write=write,
                read=read,
                head=_head(write, path, author, start),
                checkpoint=checkpoints.newest(write, path, host_key.public, start),
            )
        except BaseException:
            write.close()
            read.close()
            raise

    @property
    def journal_id(self) -> str:
        """The random name of this journal, the same in every entry."""
        return self._author.journal_id

    @property
    def head(self) -> Anchor:
        """The newest entry."""
        return self._head

    @property
    def entries_since_checkpoint(self) -> int:
        """How many entries a restart would have to fold."""
        return self._head.n - self._checkpoint

    def append(self, batch: Sequence[Batch]) -> tuple[SealedEntry, ...]:
        """Commit one entry for each event with its facts, all in one transaction; the entries as they were sealed.

        Raises:
            JournalWriteError: nothing was committed.
            UnwritableEventError: an event has no signed form; nothing was committed.
        """
        with self._writing:
            entries: list[SealedEntry] = []
            head = self._head
            for event, facts in batch:
                entries.append(sealed(self._author, head, event, facts))
                head = entries[-1].anchor
            with writing(self._write, self.path):
                pairs = list(zip(entries, batch, strict=True))
                self._write.executemany(_INSERT_ENTRY, [_entry_row(entry, item) for entry, item in pairs])
                self._write.executemany(_INSERT_FACT, [row for entry, item in pairs for row in _fact_rows(entry, item)])
            self._head = head
            return tuple(entries)

    def facts_from(self, rollout_id: RolloutId, from_seq: int, limit: int) -> list[StoredFact]:
        """Committed facts of a rollout from `from_seq` on, in order: at most `limit`, fewer when they are large.

        Raises:
            CorruptJournalError: an entry is not what was written.
        """
        with self._reading:
            return outbox.facts_from(self._read, self.path, rollout_id, from_seq, limit)

    def save_checkpoint(self, known: Known) -> None:
        """Keep `known` as the state after the newest entry.

        Raises:
            JournalWriteError: it was not kept.
        """
        with self._writing:
            checkpoints.save(self._write, self.path, self._author, self._head, known)
            self._checkpoint = self._head.n

    def restore(self) -> Restored:
        """Where to begin folding, and what to fold. Read the tail to its end before anything is appended.

        Raises:
            CorruptJournalError: what was cut off cannot be had; reading the tail, that an entry is damaged.
            NewerJournalError: reading the tail, that an entry is of a newer agent.
        """
        return checkpoints.restore(self._read, self.path, self._author.host_key.public)

    def prune(
        self,
        *,
        now: WallMs,
        delivered: Callable[[RolloutId], int],
        keep_days: int = 90,
        keep_bytes: int = 256 * 1024 * 1024,
    ) -> int:
        """Remove old entries that the newest checkpoint covers and whose facts are all delivered; how many.

        An entry is old after `keep_days`, or when the file has more than `keep_bytes`. One call does a bounded part;
        call again until it returns 0, which also lets the file shrink. `delivered` gives the number of a rollout's last
        delivered fact.

        Raises:
            JournalWriteError: nothing was removed.
        """
        limits = retention.Limits(since=WallMs(now - keep_days * retention.DAY_MS), size=keep_bytes)
        with self._writing:
            cut = retention.plan(self._write, self.path, covered=self._checkpoint, limits=limits, delivered=delivered)
            if cut is None:
                retention.give_space_back(self._write, self.path)
                return 0
            start, _ = start_of(self._write, self.path)
            retention.carry_out(self._write, self.path, self._author, cut)
            return cut.anchor.n - start.n

    def close(self) -> None:
        """Close the file and let another process have it."""
        with self._writing, self._reading:
            self._read.close()
            self._write.close()
            os.close(self._lock)


def set_aside(path: Path) -> Path:
    """Move a damaged journal out of the way, with its log, and keep it; where it is now.

    Raises:
        JournalBusyError: a process has it open.
        JournalWriteError: the directory cannot be written.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    lock = take_lock(path)
    try:
        aside = _unused(path.with_name(f"{path.name}.damaged-{stamp}"))
        # The file first: a log without its file is recognised at the next start, a file without its log is not.
        path.rename(aside)
        for log, kept in ((wal_path(path), wal_path(aside)), (shm_path(path), shm_path(aside))):
            if log.exists():
                log.rename(kept)
        sync_directory(path.parent)
    except FileNotFoundError as error:
        raise UnreadableJournalError(path=path, problem="it does not exist") from error
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        os.close(lock)
    return aside


def _unused(path: Path) -> Path:
    candidate, count = path, 1
    while candidate.exists():
        count += 1
        candidate = path.with_name(f"{path.name}.{count}")
    return candidate


def _check_pages(db: sqlite3.Connection, path: Path) -> None:
    # Reads the whole file, so only after a kill or a power cut, when there is reason to.
    with reading(path):
        [verdict] = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise CorruptJournalError(path=path, problem=str(verdict).replace("\n", " "))


def _head(db: sqlite3.Connection, path: Path, author: Author, start: Anchor) -> Anchor:
    """The newest entry, found to be by this host and key."""
    with reading(path):
        [newest] = db.execute("SELECT max(n) FROM entries").fetchone()
    if newest is None:
        return start
    entry = next(sealed_entries(db, path, newest))
    body = whole_body(path, entry)
    if body.get("host") != author.hostname:
        raise ForeignJournalError(path=path, problem=f"it is of host {body.get('host')!r}, not {author.hostname!r}")
    if not verify(PublicKey.ed25519(author.host_key.public), entry.body, entry.signature):
        raise ForeignJournalError(path=path, problem=f"entry {entry.n} is not signed by this host's key")
    return entry.anchor


def _entry_row(entry: SealedEntry, item: Batch) -> tuple[int, str, int, str | None, bytes, bytes, bytes]:
    event, facts = item
    rollout = facts[0].rollout_id if facts else None
    return entry.n, type(event).__name__, event.at.wall_ms, rollout, entry.hash, entry.signature, entry.body


def _fact_rows(entry: SealedEntry, item: Batch) -> list[tuple[str, int, int, int]]:
    return [(each.rollout_id, each.fact.seq, entry.n, idx) for idx, each in enumerate(item[1])]
