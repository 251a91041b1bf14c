"""The control plane's memory: the book, and the log that makes it durable.

`record` lets something have happened: the book changes at once, the disk follows, and the receipt says when. Whoever
promises a client that something is kept awaits the receipt first. If the disk refuses, memory is ahead of it: then the
book is read anew from the disk, so what was never kept is forgotten as if it had never been sent.
"""

import logging
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from control_plane.book import Book
from control_plane.entries import Entry
from control_plane.errors import StoreUnavailableError
from control_plane.rows import Change
from control_plane.store import Receipt, Store
from control_plane.surroundings import Surroundings
from state_machine.facts import Fact
from state_machine.values import WallMs

LOG: Final = logging.getLogger(__name__)

RECOVERY_PAUSE_S: Final = 1.0
RECOVERY_PAUSE_MAX_S: Final = 30.0
HEALTHY_AFTER_S: Final = 60.0
"""A database that has worked for so long is tried again soon after it fails; one that keeps failing, less often."""

REAL: Final = Surroundings()
Listener = Callable[[Entry, list[Change]], None]


class Ledger:
    """Book and store together. Use as an async context manager, and keep `recover` running beside it."""

    def __init__(self, path: Path, around: Surroundings = REAL) -> None:
        """Open the database.

        Raises:
            StoreError: a subclass says why it cannot be.
        """
        self.book = Book()
        self.now = around.clock
        """The wall clock by which everything is recorded."""
        self.store = Store(
            path,
            on_failure=self._on_failure,
            in_thread=around.in_thread,
            writes_in_thread=around.writes_in_thread,
        )
        self._listeners: list[Listener] = []
        self._failure: StoreUnavailableError | None = None
        self._failed = trio.Event()

    async def __aenter__(self) -> "Ledger":
        await self.store.__aenter__()
        self.book = await self.store.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.__aexit__()

    @property
    def failure(self) -> StoreUnavailableError | None:
        """Why nothing can be recorded now, if that is so."""
        return self._failure

    def subscribe(self, listener: Listener) -> None:
        """Have `listener` called after each change of the book, before it is on the disk."""
        self._listeners.append(listener)

    def record(self, entry: Entry, *, at: WallMs | None = None, fact: Fact | None = None) -> Receipt:
        """Let `entry` have happened. `fact` is what it holds, for who has read it already.

        Raises:
            StoreUnavailableError: the disk refuses to write; nothing happened.
        """
        if self._failure is not None:
            raise self._failure
        at = self.now() if at is None else at
        changes = self.book.apply(entry, at, fact)
        receipt = self.store.submit(at, entry, changes)
        for listener in self._listeners:
            listener(entry, changes)
        return receipt

    async def flushed(self) -> None:
        """Wait until everything recorded so far is on the disk.

        Raises:
            StoreUnavailableError: some of it will never be.
        """
        await self.store.submit(self.now()).committed()

    async def recover(self) -> None:
        """Whenever the disk refused: read the book anew and try again, until it takes writes. Runs for ever."""
        pause, resumed_at = RECOVERY_PAUSE_S, -math.inf
        while True:
            await self._failed.wait()
            lasted = trio.current_time() - resumed_at
            pause = RECOVERY_PAUSE_S if lasted > HEALTHY_AFTER_S else min(2 * pause, RECOVERY_PAUSE_MAX_S)
            await trio.sleep(pause)
            try:
                self.book = await self.store.load()
            except sqlite3.Error as error:
                LOG.error("the database cannot be read either: %s", error)
                continue
            self._failed, self._failure = trio.Event(), None
            self.store.resume()
            resumed_at = trio.current_time()
            LOG.warning("the database is tried again, from what it holds")

    def _on_failure(self, error: StoreUnavailableError) -> None:
        LOG.error("%s; requests that need it are answered 503", error)
        self._failure = error
        self._failed.set()
