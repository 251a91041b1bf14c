"""Journals as a bad disk, or somebody with a database tool and the host's key, would leave them.

The journal is made by the real one, then damaged: bytes of the file are replaced (an input is lines of `offset hex`,
so that findings can be read), or the body of its last entry or of a mark is replaced and properly hashed and signed.
Then everything that reads journals reads it: `status`, `verify`, `export` and the start of the agent.
"""

import atexit
import contextlib
import hashlib
import os
import shutil
import sqlite3
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from evidence.chain import Anchor
from nixfleet_agent.journal.errors import JournalError
from nixfleet_agent.journal.export import export
from nixfleet_agent.journal.marks import MarkKind
from nixfleet_agent.journal.migrate import migrate
from nixfleet_agent.journal.reader import JournalReader, verify
from nixfleet_agent.journal.schema import wal_path
from nixfleet_agent.journal.store import Journal
from state_machine.state import GENESIS
from tests.unit import wire_examples as examples
from tests.unit.journal_support import KEY, fact, open_journal, probe, tick

PATCHES: Final = (
    b"18 02\n",
    b"60 7f\n",
    b"100 00ff\n4096 0d\n8192 ffffffff\n",
    b"12288 0a000000\n",
    b"16400 00\n20480 05\n24576 00\n",
)
_PATCHES_MAX: Final = 200


def patched_file(data: bytes) -> object:
    """The journal with some bytes replaced. Lines that are no patch are passed over."""
    whole = bytearray(_genuine())
    for line in data.decode("ascii", "replace").splitlines()[:_PATCHES_MAX]:
        offset, _, text = line.partition(" ")
        if offset.isascii() and offset.isdigit() and len(offset) < 9:
            with contextlib.suppress(ValueError):
                patch = bytes.fromhex(text)
                at = int(offset) % len(whole)
                whole[at : at + len(patch)] = patch[: len(whole) - at]
    path = _place()
    path.write_bytes(whole)
    return _read_by_all(path)


def signed_entry(data: bytes) -> object:
    """The journal whose last entry has this body, with the hash and the signature that belong to it."""
    path = _place()
    path.write_bytes(_genuine())
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        row = (data, hashlib.sha256(data).digest(), KEY.sign(data))
        db.execute("UPDATE entries SET body = ?, hash = ?, signature = ? WHERE n = (SELECT max(n) FROM entries)", row)
    return _read_by_all(path)


def signed_mark(data: bytes) -> object:
    """The journal with this checkpoint, or this anchor where it calls itself one, signed by the host."""
    table = MarkKind.ANCHOR if b'"anchor"' in data else MarkKind.CHECKPOINT
    path = _place()
    path.write_bytes(_genuine())
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        row = (data, KEY.sign(data))
        db.execute(f"INSERT OR REPLACE INTO {table.value} (n, body, signature) VALUES (2, ?, ?)", row)
    return _read_by_all(path)


def _read_by_all(path: Path) -> list[object]:
    """What each reader makes of it; the last refusal, when there are any."""
    refusals: list[JournalError] = []
    found: list[object] = []
    for read in (_show, _check, _export, _start):
        try:
            found.append(read(path))
        except JournalError as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[-1]
    return found


def _show(path: Path) -> object:
    with JournalReader(path, KEY.public) as journal:
        assert isinstance(journal.journal_id, str)
        assert isinstance(journal.last_n, int)
        list(journal.restore().tail)
        list(journal.restore_oldest().tail)
        return list(journal.records())


def _check(path: Path) -> object:
    return verify(path, KEY.public, host=examples.NODE7, witnesses=[Anchor(n=1, hash=bytes(32))])


def _export(path: Path) -> object:
    directory = path.with_name("export")
    try:
        return export(path, directory, host_key=KEY)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _start(path: Path) -> object:
    journal = open_journal(path)
    try:
        tail = list(journal.restore().tail)
        facts = journal.facts_from(examples.ROLLOUT, 1, 10)
        journal.append([tick(9)])
        return tail, facts
    finally:
        journal.close()


def _place() -> Path:
    # The root is the parent's, who takes it away; what is in it is each process's own.
    path = _directory() / str(os.getpid()) / "journal.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    for each in (path, wal_path(path)):
        each.unlink(missing_ok=True)
    return path


@cache
def _directory() -> Path:
    directory = tempfile.mkdtemp(prefix="nixfleet-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


@cache
def _genuine() -> bytes:
    """Entries with and without facts, and a checkpoint, in a file without a log. The same bytes every time."""
    path = _place()
    migrate(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE journal SET id = ?", ("00" * 16,))
    journal = Journal.open(path, host_key=KEY, hostname=examples.NODE7)
    journal.append([tick(), probe(fact(1), fact(2))])
    journal.save_checkpoint(GENESIS.known)
    journal.append([probe(fact(3)), tick(2)])
    journal.close()
    return path.read_bytes()


def _bodies(table: str) -> tuple[bytes, ...]:
    path = _place()
    path.write_bytes(_genuine())
    with contextlib.closing(sqlite3.connect(path)) as db:
        return tuple(bytes(body) for [body] in db.execute(f"SELECT body FROM {table} ORDER BY n DESC"))


ENTRIES: Final = _bodies("entries")
_CHECKPOINTS: Final = _bodies(MarkKind.CHECKPOINT.value)
MARKS: Final = (*_CHECKPOINTS, *(body.replace(b'"checkpoints"', b'"anchor"') for body in _CHECKPOINTS))
