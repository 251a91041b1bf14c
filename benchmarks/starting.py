"""How long after its start the agent's first request has arrived: with nothing behind it, and with a long history.

The first request is the first thing an agent does of what its reducer decides, so it stands for the first decision.
"""

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import attrs

from benchmarks.core import recorded
from benchmarks.processes import bare_words, process, steady_agent
from benchmarks.running import Run, median
from benchmarks.stopwatch import Stopwatch, stopwatch
from benchmarks.table import Beside, Row, below
from nixfleet_agent.journal.store import Journal
from nixfleet_agent.ledger import JOURNAL_NAME
from nixfleet_agent.runtime import BATCH, CHECKPOINT_EVERY, Entry
from state_machine.events import Event, FactsDelivered, ProbeObserved
from state_machine.state import State
from state_machine.step import step
from state_machine.values import Moment, ProbeStatus, WallMs
from tests.agentlab import Agent, AgentFleet
from tests.property.agent_world import DISK, HOST, MINUTE

HISTORY: Final = 100_000
BARE: Final = "bare"


def measure(run: Run) -> Iterator[Row]:
    """Starts by turns with the bare program; then on a journal of 100,000 entries, left by a clean end or `kill -9`."""
    fleet = AgentFleet(run.directory("starting"), hosts=(HOST, BARE))
    rounds = run.of(7, 3)
    with stopwatch(fleet) as watch:
        agent = steady_agent(fleet, HOST, watch.url, running=fleet.system())
        run.say("starting an agent and the bare program by turns")
        first: list[float] = []
        again: list[float] = []
        bare: list[float] = []
        for _ in range(rounds):
            first.append(_agent(agent, watch, lambda: shutil.rmtree(agent.state_dir, ignore_errors=True)))
            again.append(_agent(agent, watch, lambda: None))
            bare.append(_bare(fleet, watch))
        beside, note = Beside(what="bare program", measured=median(bare)), f"median of {rounds} starts, by turns"
        yield Row(
            name="cold start to first request",
            measured=median(again),
            unit="s",
            beside=beside,
            aims=(below(0.3),),
            note=note,
        )
        name, note = "the very first start of a host", f"{note}; a short-lived process makes the journal's tables"
        yield Row(name=name, measured=median(first), unit="s", beside=beside, note=note)
        yield from _restarts(run, fleet, agent, watch, median(again))


def _restarts(run: Run, fleet: AgentFleet, agent: Agent, watch: Stopwatch, cold: float) -> Iterator[Row]:
    entries = run.of(HISTORY, HISTORY // 10)
    clean, killed = fleet.path("clean"), fleet.path("killed")
    run.say(f"writing a journal of {entries:,} entries")
    write_history(fleet, entries, clean, killed)
    for name, left in (("after a clean end", clean), ("after kill -9", killed)):
        run.say(f"restarting {name}")

        def put_back(left: Path = left) -> None:
            shutil.rmtree(agent.state_dir, ignore_errors=True)
            shutil.copytree(left, agent.state_dir)

        times = [_agent(agent, watch, put_back) for _ in range(run.of(5, 2))]
        yield Row(
            name=f"restart, {entries:,} entries, {name}",
            measured=median(times),
            unit="s",
            beside=Beside(what="cold start", measured=cold),
            aims=(below(1.0),),
            note=f"median of {len(times)}; the journal has {_megabytes(left):.0f} MB",
        )


def _agent(agent: Agent, watch: Stopwatch, prepare: Callable[[], None]) -> float:
    prepare()
    began = time.monotonic()
    with agent.running():
        return watch.since(began)


def _bare(fleet: AgentFleet, watch: Stopwatch) -> float:
    words = bare_words(fleet, BARE, watch.url)
    began = time.monotonic()
    with process(words):
        return watch.since(began)


def write_history(fleet: AgentFleet, entries: int, clean: Path, killed: Path) -> None:
    """A journal with checkpoints as an agent leaves it when it ends, and when it is killed in full flight."""
    clean.mkdir()
    path = clean / JOURNAL_NAME
    with contextlib.closing(Journal.open(path, host_key=fleet.keys[HOST], hostname=HOST)) as journal:
        history = itertools.islice(_history(), entries)
        for batch in iter(lambda: list(itertools.islice(history, BATCH)), []):
            journal.append([entry for entry, _ in batch])
            # The last checkpoint is as far back as it may be.
            if journal.entries_since_checkpoint >= CHECKPOINT_EVERY and journal.head.n < entries - CHECKPOINT_EVERY:
                journal.save_checkpoint(batch[-1][1].known)
        killed.mkdir()
        for file in clean.glob(f"{JOURNAL_NAME}*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, killed)


def _history() -> Iterator[tuple[Entry, State]]:
    """Durable events of a host's life with the state after each: some rollouts, then years of a probe that flaps."""
    world = recorded()
    for passage in world.run:
        if passage.step.durable:
            yield (passage.event, passage.step.facts), passage.step.state
    state, at = world.state, world.moment()
    for number in itertools.count():
        at = attrs.evolve(at, wall_ms=WallMs(at.wall_ms + MINUTE), mono_ms=at.mono_ms + MINUTE)
        status = (ProbeStatus.FAIL, ProbeStatus.PASS)[number % 2]
        observed = ProbeObserved(at=at, name=DISK.name, status=status, began_mono_ms=at.mono_ms, reason="disk is full")
        following: list[Event] = [observed, *_delivered(state, at, number)]
        for event in following:
            taken = step(state, event)
            state = taken.state
            if taken.durable:
                yield (event, taken.facts), state


def _delivered(state: State, at: Moment, number: int) -> Iterator[FactsDelivered]:
    current = state.known.current
    if number % 50 == 49 and current is not None:
        record = current.record
        yield FactsDelivered(at=at, rollout_id=record.rollout_id, through_seq=record.last_seq)


def _megabytes(directory: Path) -> float:
    return sum(file.stat().st_size for file in directory.iterdir()) / 1e6
