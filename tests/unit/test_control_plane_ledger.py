"""Durability: what a receipt promises, what happens when the disk refuses, and who may read the file."""

import sqlite3
from pathlib import Path

import pytest
import trio

from control_plane.entries import DispatchQueued, MachineRegistered
from control_plane.errors import DatabaseOpenError, NewerSchemaError, StoreUnavailableError
from control_plane.ledger import Ledger
from control_plane.rows import Host, QueuedDispatch
from control_plane.schema import SCHEMA_VERSION, open_database
from state_machine.events import DispatchKind
from state_machine.facts import DispatchAck
from state_machine.values import HostName
from tests.unit.control_plane_worlds import AT, HOSTS, OLD, ROLLOUT, accepted, ledger_at, opened, target


def registered(name: str) -> MachineRegistered:
    return MachineRegistered(hostname=HostName(name), by="alice")


def queued(host: HostName) -> DispatchQueued:
    kind = DispatchKind.DISPATCH
    return DispatchQueued(hostname=host, rollout_id=ROLLOUT, kind=kind, target_closure=target(host), soak_secs=0)


async def test_what_a_receipt_promised_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with Ledger(path) as ledger:
        await ledger.record(registered("db1")).committed()
        rows = await ledger.store.read(lambda reader: reader.execute("SELECT kind, hostname FROM log").fetchall())
        assert rows == [("MachineRegistered", "db1")]
    async with Ledger(path) as ledger:
        assert [row.hostname for row in ledger.book.all(Host)] == ["db1"]


async def test_memory_and_disk_hold_the_same_rows(tmp_path: Path) -> None:
    async with ledger_at(tmp_path / "state.db", opened(), *(queued(host) for host in HOSTS)) as ledger:
        loaded = await ledger.store.load()
        assert sorted(row.hostname for row in loaded.all(QueuedDispatch)) == sorted(HOSTS)
        for row_type in (QueuedDispatch, Host):
            assert set(map(repr, loaded.all(row_type))) == set(map(repr, ledger.book.all(row_type)))


async def test_what_waits_together_is_committed_together(tmp_path: Path) -> None:
    async with Ledger(tmp_path / "state.db") as ledger:
        receipts = [ledger.record(registered(f"db{number}")) for number in range(300)]
        for receipt in receipts:
            await receipt.committed()
        assert ledger.store.commits < 100


async def test_leaving_commits_what_is_waiting(tmp_path: Path) -> None:
    async with Ledger(tmp_path / "state.db") as ledger:
        for number in range(50):
            ledger.record(registered(f"db{number}"))
    async with Ledger(tmp_path / "state.db") as ledger:
        assert len(ledger.book.all(Host)) == 50


async def test_when_the_disk_refuses_nothing_is_kept_and_memory_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with Ledger(path) as ledger, trio.open_nursery() as nursery:
        await ledger.record(registered("before")).committed()
        nursery.start_soon(ledger.recover)
        with Locked(path):
            receipt = ledger.record(registered("lost"))
            later = ledger.record(registered("also lost"))
            with pytest.raises(StoreUnavailableError, match="locked"):
                await receipt.committed()
            with pytest.raises(StoreUnavailableError):
                await later.committed()
            with pytest.raises(StoreUnavailableError):
                ledger.record(registered("not even tried"))
            assert ledger.failure is not None
        with trio.fail_after(30):
            while ledger.failure is not None:
                await trio.sleep(0.05)
        assert [row.hostname for row in ledger.book.all(Host)] == ["before"]
        await ledger.record(registered("after")).committed()
        assert [row.hostname for row in (await ledger.store.load()).all(Host)] == ["after", "before"]
        nursery.cancel_scope.cancel()


class Locked:
    """Another process that holds the database."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)

    def __enter__(self) -> None:
        self._connection.execute("BEGIN EXCLUSIVE")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("ROLLBACK")
        self._connection.close()


async def test_a_fact_can_be_logged_once_only(tmp_path: Path) -> None:
    fact = accepted("web1", DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=AT))
    async with ledger_at(tmp_path / "state.db", opened(), fact) as ledger:
        with pytest.raises(StoreUnavailableError, match="UNIQUE"):
            await ledger.record(fact).committed()


def test_a_newer_file_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NewerSchemaError) as refused:
        open_database(path)
    assert str(refused.value) == (
        f"{path} has schema 2, this program knows 1: it was written by a later version. "
        "Run that version, or give another --db-path"
    )
    assert path.read_bytes() == before


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseOpenError, match="--db-path"):
        open_database(tmp_path / "nowhere" / "state.db")


def test_writes_are_durable_before_they_count(tmp_path: Path) -> None:
    connection = open_database(tmp_path / "state.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    connection.close()
