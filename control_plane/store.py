"""The writer: one thread that owns the database and commits what is waiting, together.

A write is done when its receipt is: it is on the disk (`synchronous=FULL`) and survives anything short of losing the
disk. Writes commit in the order of `submit`, an entry and what follows from it in one transaction. When the disk
refuses, that write and every later one fail until `resume`: nothing may be written that was decided after a write that
never happened.
"""

import enum
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

from control_plane.book import Book
from control_plane.entries import Entry
from control_plane.errors import StoreUnavailableError
from control_plane.records import encode_entry, kind_of
from control_plane.rows import Change
from control_plane.schema import INSERT_LOG, load_book, open_database, open_reader, write_changes
from control_plane.surroundings import InThread
from state_machine.values import WallMs

LOG: Final = logging.getLogger(__name__)

_BATCH: Final = 512
"""How many entries share a commit at most, so that the first of a flood is not kept waiting by the last."""

Result = TypeVar("Result")


class Receipt:
    """Of one write: awaiting `committed` returns once it is on the disk."""

    def __init__(self) -> None:
        self._settled = trio.Event()
        self._error: StoreUnavailableError | None = None

    async def committed(self) -> None:
        """Wait for the commit.

        Raises:
            StoreUnavailableError: it failed, and nothing of it was kept.
        """
        await self._settled.wait()
        if self._error is not None:
            raise self._error

    def settle(self, error: StoreUnavailableError | None) -> None:
        """Say how it ended. In the event loop's thread only."""
        self._error = error
        self._settled.set()


@attrs.frozen(kw_only=True)
class Write:
    """An entry, and the rows that follow from it. Without an entry it only marks a place in the order."""

    receipt: Receipt
    at: WallMs
    entry: Entry | None = None
    changes: Sequence[Change] = ()


class Order(enum.Enum):
    """What the writer can be told besides a write."""

    RESUME = enum.auto()
    STOP = enum.auto()


class Store:
    """The database, written by its own thread. Use as an async context manager; leaving it commits what is waiting."""

    def __init__(
        self,
        path: Path,
        *,
        on_failure: Callable[[StoreUnavailableError], None],
        in_thread: InThread = trio.to_thread.run_sync,
        writes_in_thread: bool = True,
    ) -> None:
        """Open the file. `on_failure` is called in the event loop when the disk begins to refuse.

        Reading happens `in_thread`; writing in a thread of its own, or in the event loop when it comes round.

        Raises:
            NewerSchemaError, DatabaseOpenError: as `schema.open_database`.
        """
        self.path = path
        self.commits = 0
        self._on_failure, self._in_thread = on_failure, in_thread
        self._connection = open_database(path)
        self._reader = open_reader(path)
        self._one_reader = trio.CapacityLimiter(1)
        self._waiting: queue.SimpleQueue[Write | Order] = queue.SimpleQueue()
        self._refusing = False
        self._thread = threading.Thread(target=self._run, name="store", daemon=True) if writes_in_thread else None

    async def __aenter__(self) -> "Store":
        self._loop = trio.lowlevel.current_trio_token()
        if self._thread is not None:
            self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._put(Order.STOP)
        with trio.CancelScope(shield=True):
            if self._thread is not None:
                await trio.to_thread.run_sync(self._thread.join)
        if self._thread is None:
            self._write_what_waits()
        self._reader.close()
        self._connection.close()

    def submit(self, at: WallMs, entry: Entry | None = None, changes: Sequence[Change] = ()) -> Receipt:
        """Queue a write. Without an entry, the receipt tells when everything submitted before is on the disk."""
        receipt = Receipt()
        self._put(Write(receipt=receipt, at=at, entry=entry, changes=changes))
        return receipt

    def resume(self) -> None:
        """Take writes again, from those that are submitted after this call."""
        self._put(Order.RESUME)

    async def read(self, look: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `look` finds in the committed database, in a thread."""
        async with self._one_reader:
            found: Result = await self._in_thread(look, self._reader)
            return found

    async def load(self) -> Book:
        """The book as it is on the disk."""
        return await self.read(load_book)

    def _put(self, item: Write | Order) -> None:
        self._waiting.put(item)
        if self._thread is None:
            self._loop.run_sync_soon(self._write_what_waits, idempotent=True)

    def _write_what_waits(self) -> None:
        while not self._waiting.empty():
            self._write_some()

    # In the writer's thread, if there is one

    def _run(self) -> None:
        while self._write_some() is not Order.STOP:
            pass

    def _write_some(self) -> Order | None:
        """Write what waits, at least one item and up to a batch or an order; the order."""
        batch: list[Write] = []
        order = self._next(batch, block=True)
        while order is None and len(batch) < _BATCH and not self._waiting.empty():
            order = self._next(batch, block=False)
        self._finish(batch)
        if order is Order.RESUME:
            self._refusing = False
        return order

    def _next(self, batch: list[Write], *, block: bool) -> Order | None:
        item = self._waiting.get(block=block)
        if isinstance(item, Order):
            return item
        batch.append(item)
        return None

    def _finish(self, batch: list[Write]) -> None:
        if not batch:
            return
        error = StoreUnavailableError(problem="an earlier write failed") if self._refusing else self._commit(batch)
        failing_now = error is not None and not self._refusing
        self._refusing = error is not None
        outcome = [write.receipt for write in batch], error, failing_now
        if self._thread is None:
            self._settle(*outcome)
        else:
            self._loop.run_sync_soon(self._settle, *outcome)

    def _commit(self, batch: list[Write]) -> StoreUnavailableError | None:
        rows = [_log_row(write.at, write.entry) for write in batch if write.entry is not None]
        if not rows:
            return None
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(INSERT_LOG, rows)
            write_changes(self._connection, [change for write in batch for change in write.changes])
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return StoreUnavailableError(problem=str(error))
        self.commits += 1
        return None

    # In the event loop again

    def _settle(self, receipts: list[Receipt], error: StoreUnavailableError | None, failing_now: bool) -> None:
        for receipt in receipts:
            receipt.settle(error)
        if error is not None and failing_now:
            self._on_failure(error)


def _log_row(at: WallMs, entry: Entry) -> tuple[object, ...]:
    hostname, rollout_id, seq = (getattr(entry, name, None) for name in ("hostname", "rollout_id", "seq"))
    return at, kind_of(entry), hostname, rollout_id, seq, encode_entry(entry)
