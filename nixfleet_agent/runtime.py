"""The loop: one bounded channel, one task that holds the state, one journal. Commit first, act second.

The reducer takes whatever events wait, with a `Tick` of its own when a deadline that the state names has come, works
them out with `step`, commits the durable ones with their facts in one transaction, and only then hands the orders to
the applier. While the disk works nothing waits for it but the reducer itself, and what arrives meanwhile shares the
next commit.

When the journal cannot be written, nothing durable happens: such events are held back and tried again, while
everything that needs no memory (heartbeats, polls, probes) goes on.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs
import trio

from nixfleet_agent.journal.errors import JournalError, JournalWriteError, UnwritableEventError
from nixfleet_agent.telemetry import Telemetry
from state_machine.actions import Action
from state_machine.events import Booted, Event, ProbeObserved, Tick
from state_machine.facts import RolloutFact
from state_machine.schedule import next_wakeup
from state_machine.state import TAKES_FACTS, Known, State
from state_machine.step import exchange, step
from state_machine.turn import Step
from state_machine.values import Moment, RolloutId, WallMs

if TYPE_CHECKING:
    from state_machine.passages import Passage

CHANNEL_SIZE: Final = 64
BATCH: Final = 256
HELD_BACK_MAX: Final = 1000
JOURNAL_RETRY_S: Final = 5.0
CHECKPOINT_EVERY: Final = 500
EVERYTHING: Final = 2**53
"""Delivered sequence number of a rollout that is no longer tracked: it was let go of because it was delivered."""
log = logging.getLogger(__name__)

Entry = tuple[Event, tuple[RolloutFact, ...]]


class Ledger(Protocol):
    """The journal as the runtime uses it. Synchronous: the runtime decides where it runs."""

    @property
    def entries_since_checkpoint(self) -> int:
        """How many entries a restart would have to fold."""
        ...

    def append(self, batch: Sequence[Entry]) -> object:
        """Commit the entries in one transaction.

        Raises:
            JournalWriteError: nothing was committed.
        """
        ...

    def save_checkpoint(self, known: Known) -> None:
        """Make the next restart fast."""
        ...

    def prune(self, *, now: WallMs, delivered: Callable[[RolloutId], int]) -> int:
        """Remove a bounded part of what is old and delivered; how many entries."""
        ...


InThread = Callable[..., Awaitable[Any]]
"""Runs a function that blocks, with its arguments, and returns what it returns."""


Witness = Callable[[Sequence["Passage"]], None]


@attrs.frozen(kw_only=True)
class _Worked:
    event: Event
    step: Step


class Runtime:
    """Owns the state. Workers reach it through `tell`; orders leave through `apply`.

    `after_turn` is called with the state whenever the reducer has turned, and every `wake_s` seconds in any case.
    `witness` is shown the steps that took effect together: they are on record by then, and nothing is carried out yet.
    """

    def __init__(
        self,
        *,
        state: State,
        ledger: Ledger,
        clock: Callable[[], Moment],
        telemetry: Telemetry,
        after_turn: Callable[[State], None] = lambda state: None,
        wake_s: float | None = None,
        in_thread: InThread = trio.to_thread.run_sync,
        witness: Witness | None = None,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._clock = clock
        self._telemetry = telemetry
        self._after_turn = after_turn
        self._wake_s = wake_s
        self._in_thread = in_thread
        self._witness = witness
        self._send, self._receive = trio.open_memory_channel[Event](CHANNEL_SIZE)
        self._held_back: list[Event] = []
        self._retry_at = 0.0
        self._turned = trio.Event()
        self._began = trio.Event()

    def state(self) -> State:
        """The state now. A frozen value: nobody but the reducer can change it."""
        return self._state

    async def tell(self, event: Event) -> None:
        """Hand an event to the reducer; waits while its channel is full."""
        await self._send.send(event)

    async def began(self) -> None:
        """Wait until the reducer has turned for the first time: before that the state is that of an earlier run."""
        await self._began.wait()

    def try_journal_now(self) -> None:
        """With the next event, try again to commit what is held back: somebody has reason to think that it works."""
        self._retry_at = 0.0

    async def turned(self) -> None:
        """Wait until the reducer has turned once more."""
        await self._turned.wait()

    async def reduce(self, apply: Callable[[Action], None]) -> None:
        """Take events for ever. A crash in here is a defect and ends the process."""
        while True:
            events = await self._next_events()
            if events:
                await self._turn(events, apply)
            self._after_turn(self._state)

    async def _next_events(self) -> list[Event]:
        """Whatever waits, held back or new, and a `Tick` if it is time; none when the watchdog wants to be fed."""
        wake_at = self._wake_at()
        events = self._due_again()
        self._take_what_waits(events)
        if not events:
            with trio.move_on_at(self._patient_until(wake_at)):
                events.append(self._counted(await self._receive.receive()))
            self._take_what_waits(events)
        if trio.current_time() >= wake_at:
            events.append(self._counted(Tick(at=self._clock())))
        return events

    def _take_what_waits(self, events: list[Event]) -> None:
        while len(events) < BATCH:
            try:
                events.append(self._counted(self._receive.receive_nowait()))
            except trio.WouldBlock:
                return

    def _due_again(self) -> list[Event]:
        if trio.current_time() < self._retry_at:
            return []
        events, self._held_back = self._held_back, []
        return events

    def _wake_at(self) -> float:
        """The next deadline that the state names. Deadlines, not tickers."""
        wait_ms = next_wakeup(self._state, self._clock())
        if wait_ms is None:
            return math.inf
        # What is due and cannot be done is not asked for in a busy loop.
        least_ms = 0 if self._telemetry.journal_stuck is None else 1000
        return trio.current_time() + max(wait_ms, least_ms) / 1000

    def _patient_until(self, wake_at: float) -> float:
        """That deadline, or what this process itself must wake for before it."""
        own = [] if self._wake_s is None else [trio.current_time() + self._wake_s]
        return min(wake_at, *own, *([self._retry_at] if self._held_back else []), math.inf)

    def _counted(self, event: Event) -> Event:
        self._telemetry.events[type(event).__name__] += 1
        return event

    async def _turn(self, events: list[Event], apply: Callable[[Action], None]) -> None:
        if self._held_back:  # those came before these, and must not be overtaken
            return self._go_on_without_journal(events, apply)
        try:
            await self._turn_together(events, apply)
        except UnwritableEventError as error:
            await self._turn_apart(events, error, apply)

    async def _turn_apart(
        self, events: list[Event], error: UnwritableEventError, apply: Callable[[Action], None]
    ) -> None:
        """One event has no signed form: leave that one out, so that it costs itself and nothing else."""
        if len(events) == 1:
            self._telemetry.journal_errors += 1
            log.error("an event was dropped", extra={"fields": {"event": error.kind, "why": error.problem}})
            return
        for event in events:
            await self._turn([event], apply)

    async def _turn_together(self, events: list[Event], apply: Callable[[Action], None]) -> None:
        state, worked = self._work_out(events)
        durable = [(item.event, item.step.facts) for item in worked if item.step.durable]
        if durable and not await self._commit(durable):
            return self._go_on_without_journal(events, apply)
        before, self._state = self._state, state
        self._show(before, worked)
        for item in worked:
            self._carry_out(item.step, apply)
        self._announce()
        await self._checkpoint()

    def _work_out(self, events: Sequence[Event]) -> tuple[State, list[_Worked]]:
        state, worked = self._state, []
        for event in events:
            outcome = step(state, event)
            state = outcome.state
            worked.append(_Worked(event=event, step=outcome))
        return state, worked

    async def _commit(self, durable: Sequence[Entry]) -> bool:
        try:
            await self._in_thread(self._ledger.append, durable)
        except JournalWriteError as error:
            if any(isinstance(event, Booted) for event, _ in durable):
                raise  # without its beginning this run can do nothing; the next one finds out what is left to do
            self._telemetry.journal_errors += 1
            if self._telemetry.journal_stuck is None:
                fields = {"error": str(error)}
                log.error("the journal cannot be written; nothing new is begun until it can", extra={"fields": fields})
            self._telemetry.journal_stuck = str(error)
            self._retry_at = trio.current_time() + JOURNAL_RETRY_S
            return False
        if self._telemetry.journal_stuck is not None:
            log.info("the journal can be written again")
            self._telemetry.journal_stuck = None
        return True

    def _go_on_without_journal(self, events: Sequence[Event], apply: Callable[[Action], None]) -> None:
        """Do what needs no memory, one event at a time; keep the rest for later, in order."""
        for event in events:
            outcome = step(self._state, event)
            if outcome.durable:
                self._hold_back(event)
                # What waits for the disk comes up with every tick, and must not take the exchanges with it.
                outcome = exchange(self._state, event.at)
            before, self._state = self._state, outcome.state
            self._show(before, [_Worked(event=event, step=outcome)])
            self._carry_out(outcome, apply)
        self._announce()

    def _hold_back(self, event: Event) -> None:
        # A probe says the same again soon; an answer to an order comes only once.
        if isinstance(event, Tick | ProbeObserved) or len(self._held_back) >= HELD_BACK_MAX:
            return
        self._held_back.append(event)

    def _show(self, before: State, worked: Sequence[_Worked]) -> None:
        if self._witness is None:
            return
        from state_machine.passages import Passage  # where nobody watches, nothing of it is in memory

        passages = []
        for item in worked:
            passages.append(Passage(before=before, event=item.event, step=item.step))
            before = item.step.state
        self._witness(passages)

    def _carry_out(self, outcome: Step, apply: Callable[[Action], None]) -> None:
        for fact in outcome.facts:
            kind = type(fact.fact).__name__
            log.info(kind, extra={"fields": {"rollout": fact.rollout_id, "seq": fact.fact.seq, "event": kind}})
        for action in outcome.actions:
            apply(action)

    def _announce(self) -> None:
        turned, self._turned = self._turned, trio.Event()
        turned.set()
        self._began.set()

    async def _checkpoint(self) -> None:
        if self._ledger.entries_since_checkpoint < CHECKPOINT_EVERY:
            return
        try:
            await self._in_thread(self._ledger.save_checkpoint, self._state.known)
            await self._in_thread(self._prune, self._state.known)
        except JournalError as error:
            log.warning("no checkpoint could be written", extra={"fields": {"error": str(error)}})

    def _prune(self, known: Known) -> None:
        def delivered(rollout_id: RolloutId) -> int:
            tracked = known.rollouts.get(rollout_id)
            if tracked is None or known.settings.source not in TAKES_FACTS:
                return EVERYTHING
            return tracked.delivered_seq

        self._ledger.prune(now=self._clock().wall_ms, delivered=delivered)
