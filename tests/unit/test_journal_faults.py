"""What the machine does to a journal: full and read-only disks, damage, other versions, sudden death."""

import contextlib
import hashlib
import os
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database

from evidence.chain import Anchor
from nixfleet_agent.journal.errors import (
    CorruptJournalError,
    JournalBusyError,
    JournalWriteError,
    NewerJournalError,
    UnreadableJournalError,
    WriteProblem,
)
from nixfleet_agent.journal.lock import take_lock
from nixfleet_agent.journal.migrate import MIGRATIONS, migrate
from nixfleet_agent.journal.reader import JournalReader, verify
from nixfleet_agent.journal.schema import SCHEMA_VERSION
from nixfleet_agent.journal.store import Journal, set_aside
from state_machine.state import Known, RefusalNote
from state_machine.values import SteadyMs
from tests.unit.journal_support import KEY, events_in, fact, open_journal, probe, python, tick
from tests.unit.wire_examples import NODE7, ROLLOUT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def closed(path: Path, count: int) -> Anchor:
    journal = open_journal(path)
    journal.append([tick()] * count)
    head = journal.head
    journal.close()
    return head


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def append_for_ever(journal: Journal) -> None:
    while True:
        journal.append([probe(), tick()] * 20)


def test_a_full_disk_refuses_whole_batches_and_the_journal_goes_on_when_there_is_space(small_disk: Path) -> None:
    path = small_disk / "journal.sqlite"
    journal = open_journal(path)
    (small_disk / "ballast").write_bytes(bytes(300_000))
    with pytest.raises(JournalWriteError, match="disk-full") as caught:
        append_for_ever(journal)
    assert caught.value.cause is WriteProblem.DISK_FULL
    before = journal.head
    with pytest.raises(JournalWriteError):
        journal.append([tick()] * 500)
    with pytest.raises(JournalWriteError):
        journal.save_checkpoint(Known(refusals={"x" * 400_000: RefusalNote(at=SteadyMs(0), detail="")}))
    assert (journal.head, journal.entries_since_checkpoint) == (before, before.n)
    (small_disk / "ballast").unlink()
    journal.append([probe(fact(1))])
    assert journal.head.n == before.n + 1
    assert [item.n for item in journal.facts_from(ROLLOUT, 1, 9)] == [journal.head.n]
    journal.close()
    assert verify(path, KEY.public).good == before.n + 1


def test_a_file_that_may_not_grow_is_a_write_error_and_passes(path: Path) -> None:
    open_journal(path).close()
    script = """
import resource, signal, sys, pathlib
from nixfleet_agent.journal.errors import JournalWriteError
from tests.unit.journal_support import open_journal, tick
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = open_journal(pathlib.Path(sys.argv[1]))
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
try:
    while True:
        journal.append([tick()] * 10)
except JournalWriteError as error:
    print(type(error.cause).__name__, journal.head.n)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.append([tick()])
print(journal.head.n)
journal.close()
"""
    output, errors = python(path, script=script).communicate()
    assert errors == ""
    cause, before, after = output.split()
    assert cause == "WriteProblem"
    assert int(after) == int(before) + 1 == len(events_in(path))


def test_a_journal_somebody_else_keeps_locked_is_busy_and_passes(path: Path) -> None:
    script = """
import sys, pathlib
from nixfleet_agent.journal.errors import JournalWriteError
from tests.unit.journal_support import open_journal, tick
import sqlite3
path = pathlib.Path(sys.argv[1])
journal = open_journal(path)
other = sqlite3.connect(path, isolation_level=None)
other.execute("BEGIN IMMEDIATE")
try:
    journal.append([tick()])
except JournalWriteError as error:
    print(error.cause, journal.head.n)
other.execute("ROLLBACK")
journal.append([tick()])
print(journal.head.n)
"""
    output, errors = python(path, script=script).communicate()
    assert (output.split(), errors) == (["busy", "0", "1"], "")


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """A directory nobody can write in, not even root: mounted read-only, or by its mode."""
    if os.geteuid() == 0:
        subprocess.run(["mount", "--bind", directory, directory], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", directory], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", directory], check=True)
    else:
        directory.chmod(0o500)
        try:
            yield
        finally:
            directory.chmod(0o700)


def test_a_read_only_directory_says_so_and_can_still_be_read(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.mkdir()
    path = place / "journal.sqlite"
    journal = open_journal(path)
    journal.append([probe(fact(1))])
    journal.save_checkpoint(Known(next_op=3))
    journal.append([tick()])
    journal.close()
    with read_only(place):
        with pytest.raises(JournalWriteError, match="read-only") as caught:
            open_journal(path)
        assert caught.value.cause is WriteProblem.READ_ONLY
        with JournalReader(path, KEY.public) as reader:
            restored = reader.restore()
            assert restored.known is not None
            assert (restored.known.next_op, [n for n, _ in restored.tail]) == (3, [2])
        assert verify(path, KEY.public).ok
        with pytest.raises(JournalWriteError, match="read-only"):
            set_aside(path)
        with pytest.raises(JournalWriteError, match="read-only"):
            Journal.open(place / "other.sqlite", host_key=KEY, hostname=NODE7)
    open_journal(path).close()


def test_after_a_sudden_death_even_a_read_only_directory_shows_the_last_entry(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.mkdir()
    path = place / "journal.sqlite"
    closed(path, 2)
    die_after(path, 3)
    with read_only(place), JournalReader(path) as reader:
        assert [record.n for record in reader.records()] == [1, 2, 3, 4, 5]
    (place / "journal.sqlite-shm").unlink()
    with read_only(place), pytest.raises(UnreadableJournalError):
        JournalReader(path)


# Damage


@pytest.mark.parametrize("content", [b"hello", b"SQLite format 3\x00", b"SQLite format 3\x00" + bytes(4080), bytes(9)])
def test_what_is_no_database_is_damaged_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CorruptJournalError, match="is damaged"):
        open_journal(path)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_not_taken_over(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE recipes(name)")
    db.close()
    with pytest.raises(CorruptJournalError, match="a database of something else"):
        open_journal(path)


def test_a_database_of_the_right_number_with_other_tables_is_damaged(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE recipes(name)")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    db.close()
    with pytest.raises(CorruptJournalError, match="no such table"):
        open_journal(path)


def corrupt_the_middle(path: Path) -> None:
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        file.seek(pages // 3 * 4096)
        file.write(b"\xa5" * 4096 * (pages // 3))


def test_corrupt_pages_are_found_when_they_are_read(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(seq)) for seq in range(1, 200)])
    journal.close()
    corrupt_the_middle(path)
    with JournalReader(path) as reader, pytest.raises(CorruptJournalError):
        list(reader.records())
    with pytest.raises(CorruptJournalError):
        verify(path, KEY.public)
    with pytest.raises(CorruptJournalError):
        read_everything(path)


def read_everything(path: Path) -> None:
    journal = open_journal(path)
    try:
        for first in range(1, 200, 10):
            journal.facts_from(ROLLOUT, first, 10)
        list(journal.restore().tail)
    finally:
        journal.close()


def test_after_a_sudden_death_the_whole_file_is_checked(path: Path) -> None:
    closed(path, 200)
    die_after(path, 3)
    corrupt_the_middle(path)
    with pytest.raises(CorruptJournalError):
        open_journal(path)


def test_a_damaged_journal_is_set_aside_with_its_log_and_a_new_one_begins(path: Path) -> None:
    closed(path, 3)
    die_after(path, 2)
    names = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith(".lock")}
    aside = set_aside(path)
    assert aside.name.startswith("journal.sqlite.damaged-2")
    assert aside.name.endswith("Z")
    kept = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith(".lock")}
    assert {name.replace("journal.sqlite", aside.name): data for name, data in names.items()} == kept
    assert events_in(path) == []
    aside_too = set_aside(path)
    assert aside_too != aside
    assert len(events_in(aside)) == 5


def test_a_journal_in_use_is_not_set_aside(path: Path) -> None:
    journal = open_journal(path)
    with pytest.raises(JournalBusyError):
        set_aside(path)
    journal.close()


def test_there_must_be_something_to_set_aside(path: Path) -> None:
    with pytest.raises(UnreadableJournalError, match="does not exist"):
        set_aside(path)


def test_a_log_whose_file_is_gone_is_kept_away_from_the_new_file(path: Path) -> None:
    closed(path, 1)
    die_after(path, 2)
    path.unlink()
    journal = Journal.open(path, host_key=KEY, hostname=NODE7)
    assert journal.head.n == 0
    journal.close()
    assert (path.parent / "journal.sqlite.stray-wal").stat().st_size > 0


def test_a_reader_of_nothing_says_so(path: Path) -> None:
    with pytest.raises(UnreadableJournalError, match="there is no journal yet"):
        JournalReader(path)
    assert not path.exists()


# Versions


def contents(directory: Path) -> dict[str, str]:
    files = (file for file in directory.iterdir() if not file.name.endswith(".lock"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_journal_of_a_newer_version_is_not_touched(path: Path) -> None:
    closed(path, 3)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    db.close()
    before = contents(path.parent)
    with pytest.raises(NewerJournalError, match=f"schema version {SCHEMA_VERSION + 1}, this agent knows up to"):
        open_journal(path)
    with pytest.raises(NewerJournalError):
        verify(path, KEY.public)
    assert contents(path.parent) == before


def test_a_newer_version_that_is_only_in_the_log_is_seen_and_not_touched(path: Path) -> None:
    closed(path, 3)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    before = {name: sum_ for name, sum_ in contents(path.parent).items() if not name.endswith("-shm")}
    assert "journal.sqlite-wal" in before
    with pytest.raises(NewerJournalError):
        open_journal(path)
    assert {name: sum_ for name, sum_ in contents(path.parent).items() if not name.endswith("-shm")} == before
    db.close()


def test_an_older_journal_is_brought_up_to_date_and_keeps_everything(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(1)), tick()])
    journal.close()

    def later(db: Database) -> None:
        db.table("entries").add_column("weather", str)

    migrate(path, [*MIGRATIONS, later])
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    assert db.execute("SELECT n, weather FROM entries").fetchall() == [(1, None), (2, None)]
    db.close()


def test_a_migration_that_fails_halfway_leaves_the_old_version(path: Path) -> None:
    closed(path, 3)

    def breaks(db: Database) -> None:
        db.table("entries").add_column("weather", str)
        db.execute("INSERT INTO nowhere VALUES (1)")

    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrate(path, [*MIGRATIONS, breaks])
    assert len(events_in(path)) == 3


def test_opening_makes_a_journal_in_a_process_of_its_own(path: Path) -> None:
    script = """
import sys, pathlib
from nixfleet_agent.journal.store import Journal
from tests.unit.wire_examples import NODE7
from evidence.host_key import HostKey
journal = Journal.open(pathlib.Path(sys.argv[1]), host_key=HostKey(seed=bytes(32)), hostname=NODE7)
print(journal.head.n, "sqlite_utils" in sys.modules, "cryptography" in sys.modules)
"""
    output, errors = python(path, script=script).communicate()
    assert (output, errors) == ("0 False False\n", "")


def test_a_migration_of_no_database_ends_with_the_status_for_damage(path: Path) -> None:
    path.write_bytes(b"hello, this is no database at all")
    process = python("-m", "nixfleet_agent.journal.migrate", path)
    said = process.communicate()[1]
    assert (process.returncode, said) == (13, "file is not a database")


# Sudden death


def die_after(path: Path, count: int) -> None:
    """Another process appends `count` entries and is killed."""
    script = """
import sys, pathlib
from tests.unit.journal_support import open_journal, tick
journal = open_journal(pathlib.Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    journal.append([tick()])
print("done", flush=True)
sys.stdin.read()
"""
    process = python(path, str(count), script=script)
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n", process.communicate()[1]
    process.kill()
    process.communicate()


APPENDER = """
import sys, pathlib
from tests.unit.journal_support import fact, open_journal, probe, tick
from state_machine.state import Known, RefusalNote
from state_machine.values import SteadyMs
journal = open_journal(pathlib.Path(sys.argv[1]))
seq = len(journal.facts_from(fact(1).rollout_id, 1, 500))
print("ready", flush=True)
while True:
    seq += 1
    journal.append([probe(fact(seq)), tick(), tick()])
    print(journal.head.n, seq, flush=True)
    if seq % 10 == 0:
        journal.save_checkpoint(Known(next_op=journal.head.n))
"""


@pytest.mark.parametrize("lines", [1, 7, 25, 60])
def test_a_killed_writer_loses_nothing_it_was_told_is_written(path: Path, lines: int) -> None:
    for _ in range(2):
        process = python(path, script=APPENDER)
        assert process.stdout is not None
        acknowledged = [process.stdout.readline() for _ in range(1 + lines)][-1]
        process.send_signal(signal.SIGKILL)
        acknowledged = [acknowledged, *process.communicate()[0].splitlines()][-1]
        head, seq = (int(number) for number in acknowledged.split())
        report = verify(path, KEY.public)
        assert report.ok, str(report.fault)
        assert report.good >= head
        assert report.good % 3 == 0, "a batch is whole or absent"
        journal = open_journal(path)
        assert len(journal.facts_from(ROLLOUT, 1, 500)) >= min(seq, 500)
        restored = journal.restore()
        assert restored.n + sum(1 for _ in restored.tail) == report.good
        assert restored.known is None or restored.known.next_op == restored.n
        journal.close()


def test_a_lock_that_could_not_be_signed_is_not_kept(tmp_path: Path) -> None:
    """Seed 304 at full depth: on a full disk the agent met its own lock, and ended instead of holding."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(JournalWriteError):
            take_lock(tmp_path / "journal.sqlite")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    os.close(take_lock(tmp_path / "journal.sqlite"))
