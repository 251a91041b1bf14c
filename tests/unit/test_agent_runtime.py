"""The loop around `step`, without processes: what is committed before what is done, and what a failing disk changes."""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import attrs
import pytest
import trio
from trio.testing import MockClock

from nixfleet_agent.journal.errors import JournalWriteError
from nixfleet_agent.runtime import CHANNEL_SIZE, CHECKPOINT_EVERY, HELD_BACK_MAX, JOURNAL_RETRY_S, Entry, Runtime
from nixfleet_agent.supervision import keep_going
from nixfleet_agent.telemetry import Telemetry
from state_machine.actions import Action, Perform, Unexpected
from state_machine.events import (
    Booted,
    Duty,
    DutyFinished,
    Event,
    Poked,
    ProbeObserved,
    QuarantineCleared,
    Settings,
    SystemObserved,
    Tick,
)
from state_machine.state import GENESIS, Known, Quarantined, Realising, State
from state_machine.step import step
from state_machine.system import SystemView
from state_machine.values import (
    Closure,
    HostName,
    Moment,
    OpId,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    RolloutId,
    SteadyMs,
    WallMs,
)

A: Final = Closure("0c5b2m7zq9v1d3f4g6h8j0k2l4n6p8r0-a")
B: Final = Closure("1d6c3n8zr0w2f4g5h7i9k1l3m5n7q9s1-b")
C: Final = Closure("2f7d4p9as1x3g5h6i8j0l2m4n6p8r0v2-c")
SERVICE: Final = ProbeSpec(name="service", kind="command", mode=ProbeMode.ENFORCE)
WALL: Final = 1_780_308_002_125


def now() -> Moment:
    elapsed = int(trio.current_time() * 1000)
    return Moment(wall_ms=WallMs(WALL + elapsed), mono_ms=elapsed)


async def inline(work: Callable[..., Any], *arguments: Any) -> object:
    """In place of a thread, which a mock clock would not wait for."""
    await trio.lowlevel.checkpoint()
    return work(*arguments)


@attrs.define(kw_only=True)
class MemoryLedger:
    """Keeps what the disk would keep. `refuses` is a full disk."""

    commits: list[list[Entry]] = attrs.field(factory=list)
    checkpoints: list[Known] = attrs.field(factory=list)
    attempts: int = 0
    refuses: bool = False
    entries_since_checkpoint: int = 0

    def append(self, batch: Sequence[Entry]) -> None:
        self.attempts += 1
        if self.refuses:
            raise JournalWriteError(problem="the disk is full")
        self.commits.append(list(batch))
        self.entries_since_checkpoint += len(batch)

    def save_checkpoint(self, known: Known) -> None:
        self.checkpoints.append(known)
        self.entries_since_checkpoint = 0

    def prune(self, *, now: WallMs, delivered: Callable[[RolloutId], int]) -> int:
        assert delivered(RolloutId("edge@0a")) > 0
        return 0

    @property
    def events(self) -> list[Event]:
        return [event for commit in self.commits for event, _ in commit]


@attrs.define(kw_only=True)
class Bench:
    """A runtime, what it was told to do, and how much of the journal was on the disk when it was."""

    ledger: MemoryLedger = attrs.field(factory=MemoryLedger)
    telemetry: Telemetry = attrs.field(factory=Telemetry)
    wake_s: float | None = None
    state: State = GENESIS
    done: list[tuple[Action, int]] = attrs.field(factory=list)
    turns: list[float] = attrs.field(factory=list)
    answer: Callable[[Action], Awaitable[None]] | None = None
    runtime: Runtime = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.runtime = Runtime(
            state=self.state,
            ledger=self.ledger,
            clock=now,
            telemetry=self.telemetry,
            after_turn=lambda state: self.turns.append(trio.current_time()),
            wake_s=self.wake_s,
            in_thread=inline,
        )

    async def run(self, nursery: trio.Nursery) -> None:
        def apply(action: Action) -> None:
            self.done.append((action, len(self.ledger.events)))
            if self.answer is not None:
                nursery.start_soon(self.answer, action)

        nursery.start_soon(self.runtime.reduce, apply)

    def actions(self) -> list[Action]:
        return [action for action, _ in self.done]


def booted(probes: tuple[ProbeSpec, ...] = ()) -> Booted:
    return Booted(at=now(), settings=Settings(machine_id=HostName("node7")), system=seen(A).system, probes=probes)


def seen(running: Closure) -> SystemObserved:
    return SystemObserved(at=now(), system=SystemView(boot_id="boot-1", running=running, booted=A, profile=A))


def done(duty: Duty) -> DutyFinished:
    return DutyFinished(at=now(), duty=duty, ok=True)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_nothing_is_done_before_the_event_that_asks_for_it_is_on_the_disk() -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        nursery.cancel_scope.cancel()
    assert {type(action) for action, _ in bench.done} >= {Perform}
    assert all(on_disk == 1 for _, on_disk in bench.done)


async def test_what_arrives_while_the_disk_works_shares_one_commit_in_order() -> None:
    bench = Bench()
    await bench.runtime.tell(booted())
    for closure in (B, C, A):
        await bench.runtime.tell(seen(closure))
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await settle()
        nursery.cancel_scope.cancel()
    assert len(bench.ledger.commits) == 1
    assert [type(event) for event in bench.ledger.events] == [Booted, SystemObserved, SystemObserved, SystemObserved]


async def test_the_journal_folds_to_the_state_that_runs() -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        told: tuple[Event, ...] = (booted((SERVICE,)), seen(B), done(Duty.HEARTBEAT), seen(C))
        for event in told:
            await bench.runtime.tell(event)
            await settle()
        nursery.cancel_scope.cancel()
    folded = GENESIS
    for event in bench.ledger.events:
        folded = step(folded, event).state
    assert folded.known == bench.runtime.state().known


async def test_a_full_channel_makes_workers_wait_and_drops_nothing() -> None:
    bench = Bench()
    await bench.runtime.tell(booted())
    for number in range(CHANNEL_SIZE - 1):
        await bench.runtime.tell(seen(A if number % 2 else B))
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(0.01):
            await bench.runtime.tell(seen(C))
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(seen(C))
        await settle()
        nursery.cancel_scope.cancel()
    assert bench.runtime.state().known.system.running == C
    assert bench.telemetry.events["SystemObserved"] == CHANNEL_SIZE


# A disk that fails


async def test_while_the_journal_cannot_be_written_exchanges_go_on_and_nothing_is_remembered(
    autojump_clock: MockClock,
) -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        bench.ledger.refuses = True
        await bench.runtime.tell(seen(B))
        await bench.runtime.tell(done(Duty.HEARTBEAT))
        await trio.sleep(90)
        nursery.cancel_scope.cancel()
    beats = [action for action in bench.actions() if action == Perform(duty=Duty.HEARTBEAT)]
    assert len(beats) == 2
    assert bench.runtime.state().known.system.running == A
    assert bench.telemetry.journal_stuck is not None
    assert bench.telemetry.journal_errors >= 90 // JOURNAL_RETRY_S - 1


async def test_what_waits_for_the_disk_does_not_take_the_exchanges_with_it(autojump_clock: MockClock) -> None:
    """A fetch is to be tried again, which has to be remembered first: that comes up with every tick, and cannot be."""
    fetch = Realising(
        op=OpId(1),
        rollout_id=RolloutId("edge@0a"),
        closure=B,
        due=SteadyMs(10_000),
        failures=1,
        retry_at=SteadyMs(5_000),
    )
    bench = Bench(state=State(known=attrs.evolve(GENESIS.known, operation=fetch)))

    async def world(action: Action) -> None:
        if isinstance(action, Perform):
            await trio.sleep(60 if action.duty is Duty.DISPATCH else 0.1)
            await bench.runtime.tell(done(action.duty))

    bench.answer = world
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        bench.ledger.refuses = True
        await trio.sleep(600)
        nursery.cancel_scope.cancel()
    assert bench.telemetry.journal_stuck is not None
    assert bench.runtime.state().known.operation == fetch
    for duty in (Duty.HEARTBEAT, Duty.INTENT, Duty.DISPATCH):
        assert bench.actions().count(Perform(duty=duty)) >= 9, duty


async def test_held_back_events_are_committed_in_order_before_anything_newer(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        bench.ledger.refuses = True
        await bench.runtime.tell(seen(B))
        await settle()
        bench.ledger.refuses = False
        # The disk is well again, but the older event still waits: this one must not overtake it.
        await bench.runtime.tell(seen(C))
        await settle()
        await trio.sleep(JOURNAL_RETRY_S * 2)
        nursery.cancel_scope.cancel()
    running = [event.system.running for event in bench.ledger.events if isinstance(event, SystemObserved)]
    assert running == [B, C]
    assert bench.runtime.state().known.system.running == C
    assert bench.telemetry.journal_stuck is None


async def test_a_retried_event_is_counted_once(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        bench.ledger.refuses = True
        await bench.runtime.tell(seen(B))
        await trio.sleep(JOURNAL_RETRY_S * 4)
        bench.ledger.refuses = False
        await trio.sleep(JOURNAL_RETRY_S * 2)
        nursery.cancel_scope.cancel()
    assert bench.telemetry.events["SystemObserved"] == 1
    assert bench.runtime.state().known.system.running == B


async def test_what_comes_again_by_itself_is_not_held_back(autojump_clock: MockClock) -> None:
    bench = Bench()
    probe = ProbeObserved(
        at=Moment(wall_ms=WallMs(WALL), mono_ms=5), name="service", status=ProbeStatus.PASS, began_mono_ms=4
    )
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted((SERVICE,)))
        await settle()
        bench.ledger.refuses = True
        await bench.runtime.tell(seen(B))
        await bench.runtime.tell(probe)
        await bench.runtime.tell(Tick(at=now()))
        await settle()
        bench.ledger.refuses = False
        await trio.sleep(JOURNAL_RETRY_S * 2)
        nursery.cancel_scope.cancel()
    assert [type(event) for event in bench.ledger.events] == [Booted, SystemObserved]


async def test_what_is_held_back_is_bounded(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        bench.ledger.refuses = True
        for number in range(HELD_BACK_MAX + 200):
            await bench.runtime.tell(seen(B if number % 2 else C))
        await settle()
        bench.ledger.refuses = False
        await trio.sleep(JOURNAL_RETRY_S * 2)
        nursery.cancel_scope.cancel()
    assert len(bench.ledger.events) <= HELD_BACK_MAX + 1


async def test_the_journal_is_not_tried_more_often_than_every_few_seconds(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        bench.ledger.refuses = True
        for _ in range(100):
            await bench.runtime.tell(seen(B))
            await bench.runtime.tell(done(Duty.HEARTBEAT))
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert bench.ledger.attempts <= 2 + 10 / JOURNAL_RETRY_S


async def test_the_journal_is_tried_at_once_when_somebody_asks(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        bench.ledger.refuses = True
        await bench.runtime.tell(seen(B))
        await settle()
        bench.ledger.refuses = False
        began = trio.current_time()
        bench.runtime.try_journal_now()
        await bench.runtime.tell(Poked(at=now()))
        await settle()
        assert trio.current_time() == began
        assert bench.runtime.state().known.system.running == B
        nursery.cancel_scope.cancel()


async def test_a_start_that_cannot_be_recorded_ends_the_process(autojump_clock: MockClock) -> None:
    """Held back, it would leave an agent that does nothing at all; a new start finds out what may still be done."""
    bench = Bench(ledger=MemoryLedger(refuses=True))
    with pytest.RaisesGroup(JournalWriteError):
        async with trio.open_nursery() as nursery:
            await bench.run(nursery)
            await bench.runtime.tell(booted())


# The reducer


async def test_a_defect_in_the_reducer_ends_everything() -> None:
    bench = Bench()

    def broken(action: Action) -> None:
        raise RuntimeError("a defect")

    with pytest.RaisesGroup(RuntimeError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.runtime.reduce, broken)
            await bench.runtime.tell(booted())


@pytest.mark.parametrize("refuses", [False, True])
async def test_the_watchdog_is_fed_while_nothing_happens(autojump_clock: MockClock, refuses: bool) -> None:
    bench = Bench(wake_s=2.0)
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        bench.ledger.refuses = refuses
        await bench.runtime.tell(seen(B))
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    pauses = [later - earlier for earlier, later in itertools.pairwise(bench.turns)]
    assert max(pauses) <= 2.0
    assert len(bench.turns) >= 30


async def test_a_checkpoint_is_made_now_and_then(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        for number in range(CHECKPOINT_EVERY - 1):
            await bench.runtime.tell(seen(A if number % 2 else B))
            await settle()
        nursery.cancel_scope.cancel()
    assert bench.ledger.checkpoints == [bench.runtime.state().known]


async def test_whoever_waits_for_a_turn_sees_the_state_after_it() -> None:
    entry = Quarantined(rollout_id=RolloutId("edge@0a"), at=WallMs(0), why="sick")
    bench = Bench(state=State(known=Known(quarantine={A: entry})))
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)

        async def clear() -> None:
            await bench.runtime.tell(QuarantineCleared(at=now(), closure=None, by="alice"))

        nursery.start_soon(clear)
        await bench.runtime.turned()
        assert not bench.runtime.state().known.quarantine
        nursery.cancel_scope.cancel()


# The alarm


async def test_an_idle_agent_wakes_for_its_polls_and_nothing_else(autojump_clock: MockClock) -> None:
    bench = Bench()

    async def world(action: Action) -> None:
        """A control plane that answers at once, and a long-poll that lasts."""
        if isinstance(action, Perform):
            await trio.sleep(60 if action.duty is Duty.DISPATCH else 0.1)
            await bench.runtime.tell(done(action.duty))

    bench.answer = world
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await trio.sleep(3600)
        nursery.cancel_scope.cancel()
    exchanges = [action for action in bench.actions() if isinstance(action, Perform)]
    assert 3 * 55 <= len(exchanges) <= 3 * 65
    assert bench.telemetry.events["Tick"] <= len(exchanges)
    assert len(bench.turns) <= 2 * len(exchanges) + 10


async def test_the_alarm_does_not_ask_in_a_busy_loop_for_what_the_disk_prevents(autojump_clock: MockClock) -> None:
    bench = Bench()
    async with trio.open_nursery() as nursery:
        await bench.run(nursery)
        await bench.runtime.tell(booted())
        await settle()
        bench.ledger.refuses = True
        await bench.runtime.tell(seen(B))
        # Every exchange fails from now on and is due again and again.
        for duty in (Duty.HEARTBEAT, Duty.DISPATCH, Duty.INTENT):
            await bench.runtime.tell(DutyFinished(at=now(), duty=duty, ok=False))
        await trio.sleep(600)
        nursery.cancel_scope.cancel()
    assert bench.telemetry.events["Tick"] <= 600
    assert not [action for action in bench.actions() if isinstance(action, Unexpected)]


# Supervision


async def test_a_crashed_worker_is_begun_again_after_a_growing_pause_and_counted(autojump_clock: MockClock) -> None:
    telemetry, began = Telemetry(), list[float]()

    async def work() -> None:
        began.append(trio.current_time())
        if len(began) <= 9:
            raise OSError("not today")

    await keep_going("probes", work, telemetry.worker_restarts)
    pauses = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
    assert telemetry.worker_restarts == {"probes": 9}


async def test_a_worker_that_crashes_in_a_nursery_of_its_own_is_begun_again_too(autojump_clock: MockClock) -> None:
    telemetry, tries = Telemetry(), list[int]()

    async def child() -> None:
        raise RuntimeError("a defect")

    async def work() -> None:
        tries.append(1)
        if len(tries) < 3:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)

    await keep_going("probes", work, telemetry.worker_restarts)
    assert telemetry.worker_restarts == {"probes": 2}


async def test_a_worker_that_is_told_to_stop_is_not_begun_again(autojump_clock: MockClock) -> None:
    telemetry = Telemetry()
    with trio.move_on_after(5):
        await keep_going("probes", trio.sleep_forever, telemetry.worker_restarts)
    assert not telemetry.worker_restarts
