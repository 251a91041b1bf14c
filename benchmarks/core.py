"""`step` on a recorded run: a day of a host's life with a rollout every hour, one of them sick, and a crash."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from benchmarks.running import Run, per_second
from benchmarks.table import Row, at_least
from nixfleet_agent.runtime import Entry
from state_machine.events import Event
from state_machine.state import GENESIS
from state_machine.step import step
from state_machine.values import RolloutId
from tests.property.agent_world import HOUR, Release, World, closure

ROLLOUTS: Final = 8


@functools.cache
def recorded() -> World:
    """A host in a world where everybody is honest, for some hours. The same every time."""
    world = World(watched=False)
    world.start()
    for number in range(ROLLOUTS):
        target = closure("123456789abcd"[number], f"release{number}")
        if number == 3:
            world.sick.add(target)
        world.publish(RolloutId(f"edge@{number:x}"), Release(target=target))
        world.live(HOUR)
        if number == 5:
            world.kill()
    return world


def events() -> Sequence[Event]:
    """Everything the host's reducer was told."""
    return [passage.event for passage in recorded().run]


def entries() -> Iterator[Entry]:
    """What of it went into the journal, with the facts; again and again, each time with other rollouts' names."""
    durable = [(passage.event, passage.step.facts) for passage in recorded().run if passage.step.durable]
    for turn in itertools.count():
        for event, facts in durable:
            yield event, tuple(attrs.evolve(fact, rollout_id=RolloutId(f"{fact.rollout_id}{turn:x}")) for fact in facts)


def measure(run: Run) -> Iterator[Row]:
    """Steps a second."""
    run.say("recording a run")
    record = events()

    def once() -> int:
        state = GENESIS
        for event in record:
            state = step(state, event).state
        return len(record)

    run.say("stepping through it")
    kinds = len({type(event) for event in record})
    note = f"{len(record)} events of {kinds} kinds, {ROLLOUTS} rollouts"
    yield Row(
        name="steps on a recorded run",
        measured=per_second(once, run.of(5, 1)),
        unit="/s",
        aims=(at_least(100_000),),
        note=note,
    )
