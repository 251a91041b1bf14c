"""Open the journal at start, fold it, and decide nothing: what cannot be opened is kept, and the agent goes on without.

A journal that is damaged, of a newer version or on a disk that cannot be written must not stop health checks and
heartbeats, and must not be forgotten either: quarantine lives in it. So in such a run nothing new may begin (`holds`),
nothing is remembered, and as soon as the journal can be used again the agent starts itself anew.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio

from evidence.host_key import HostKey
from nixfleet_agent.journal.checkpoints import Restored
from nixfleet_agent.journal.errors import CorruptJournalError, JournalBusyError, JournalError, JournalWriteError
from nixfleet_agent.journal.lock import take_lock
from nixfleet_agent.journal.store import Journal, set_aside
from nixfleet_agent.journal.upgrade import upgrade
from nixfleet_agent.runtime import Entry, InThread, Ledger
from nixfleet_agent.workers.outbound import FactStore, StoredFact
from state_machine.state import GENESIS, Known, State
from state_machine.step import step
from state_machine.values import HostName, RolloutId, WallMs

JOURNAL_NAME: Final = "journal.sqlite"
TRY_AGAIN_S: Final = 30.0
log = logging.getLogger(__name__)


class Foldable(Protocol):
    """A journal, open for writing or only for reading."""

    def restore(self) -> Restored:
        """Where to begin, and what to fold."""
        ...


class _Source(Protocol):
    def facts_from(self, rollout_id: RolloutId, from_seq: int, limit: int) -> Sequence[StoredFact]: ...


class JournalFacts:
    """Reads facts from the journal without holding up the event loop."""

    def __init__(self, source: _Source, in_thread: InThread) -> None:
        self._source = source
        self._in_thread = in_thread

    async def facts_from(self, rollout_id: RolloutId, from_seq: int, limit: int) -> Sequence[StoredFact]:
        """At most `limit` facts of the rollout from `from_seq` on, in order."""
        facts: Sequence[StoredFact] = await self._in_thread(self._source.facts_from, rollout_id, from_seq, limit)
        return facts


class NoJournal:
    """Stands in for a journal that cannot be used: remembers nothing, in a run in which nothing new may begin."""

    entries_since_checkpoint = 0

    def append(self, batch: Sequence[Entry]) -> None:
        """Forget it."""

    def save_checkpoint(self, known: Known) -> None:
        """There is nothing to save it in."""

    def prune(self, *, now: WallMs, delivered: Callable[[RolloutId], int]) -> int:
        """There is nothing to prune."""
        return 0

    def facts_from(self, rollout_id: RolloutId, from_seq: int, limit: int) -> Sequence[StoredFact]:
        """None."""
        return ()


@attrs.define(kw_only=True)
class Opened:
    """What a start found. `holds` says why nothing new may begin, or is empty."""

    ledger: Ledger
    facts: FactStore
    known: Known
    journal_id: str
    close: Callable[[], None]
    in_thread: InThread
    try_again: Callable[[], bool] = lambda: False
    holds: str = ""
    reborn: bool = False
    """The journal can be used again: the process is to start itself anew."""
    _poked: trio.Event = attrs.field(factory=trio.Event, init=False)

    def poke(self) -> None:
        """Somebody has reason to think that things are better now."""
        self._poked.set()

    async def wait_until_usable(self, scope: trio.CancelScope) -> None:
        """Look now and then, and when poked, whether the journal can be opened; then end this run."""
        while True:
            self._poked = trio.Event()
            with trio.move_on_after(TRY_AGAIN_S):
                await self._poked.wait()
            if await self.in_thread(self.try_again):
                break
        log.info("the journal can be used again; starting anew")
        self.reborn = True
        scope.cancel()


class _Claim:
    """The journal's lock, held by a run that cannot use the journal, so that no second agent begins beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None

    def take(self) -> None:
        """Take it where that is possible: on a disk that cannot be written nobody can.

        Raises:
            JournalBusyError: another process has it.
        """
        with contextlib.suppress(JournalWriteError):
            self._lock = take_lock(self._path)

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_ledger(
    state_dir: Path,
    *,
    host_key: HostKey,
    hostname: HostName,
    in_thread: InThread = trio.to_thread.run_sync,
    make: Callable[[Path], None] = upgrade,
) -> Opened:
    """Open and fold the journal; `make` makes its file. What is asked of it later runs `in_thread`.

    Raises:
        JournalBusyError: another process has it.
    """
    path = state_dir / JOURNAL_NAME
    try:
        journal, known = _open(path, host_key, hostname, make)
    except JournalBusyError:
        raise
    except JournalError as error:
        holds = _keep_aside(path, error)
        claim = _Claim(path)
        claim.take()
        return _without(holds, claim, lambda: _open(path, host_key, hostname, make)[0].close(), in_thread)
    return Opened(
        ledger=journal,
        facts=JournalFacts(journal, in_thread),
        known=known,
        journal_id=journal.journal_id,
        close=journal.close,
        in_thread=in_thread,
    )


def _open(path: Path, host_key: HostKey, hostname: HostName, make: Callable[[Path], None]) -> tuple[Journal, Known]:
    damaged = _damaged(path)
    if damaged is not None and not path.exists():
        raise JournalWriteError(problem=f"{damaged.name} was set aside; see `nixfleet-agent journal begin`")
    journal = Journal.open(path, host_key=host_key, hostname=hostname, make=make)
    try:
        known = fold(journal)
        if journal.entries_since_checkpoint > 0:
            # The next start is quicker for it; and a disk that takes nothing shows now, while there is a choice.
            journal.save_checkpoint(known)
        return journal, known
    except BaseException:
        journal.close()
        raise


def fold(journal: Foldable) -> Known:
    """The state that the journal amounts to: the newest good checkpoint and every entry after it."""
    restored = journal.restore()
    state = GENESIS if restored.known is None else State(known=restored.known)
    for _, event in restored.tail:
        state = step(state, event).state
    return state.known


def _damaged(path: Path) -> Path | None:
    return max(path.parent.glob(f"{path.name}.damaged-*"), default=None)


def _keep_aside(path: Path, error: JournalError) -> str:
    if isinstance(error, CorruptJournalError):
        try:
            kept = set_aside(path)
        except JournalError as problem:
            log.error("the journal is damaged", extra={"fields": {"why": str(error), "left": str(problem)}})
        else:
            fields = {"kept": str(kept), "why": str(error)}
            log.error("the journal is damaged and was set aside", extra={"fields": fields})
    return str(error)


def _without(holds: str, claim: _Claim, attempt: Callable[[], None], in_thread: InThread) -> Opened:
    def try_again() -> bool:
        claim.release()
        try:
            attempt()
        except JournalError:
            with contextlib.suppress(JournalBusyError):
                claim.take()
            return False
        return True

    nothing = NoJournal()
    return Opened(
        ledger=nothing,
        facts=JournalFacts(nothing, in_thread),
        known=Known(),
        journal_id="none",
        close=claim.release,
        in_thread=in_thread,
        try_again=try_again,
        holds=holds,
    )
