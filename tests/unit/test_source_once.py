"""By what status `run-once` ends with each source, and when it does not end yet."""

from typing import Any

import attrs
import pytest

from nixfleet_agent.once import (
    CANNOT,
    CONVERGED,
    FAILED,
    NEEDS_REBOOT,
    NOTHING_OFFERED,
    ROLLED_BACK,
    WAITS_FOR_WINDOW,
    exit_status,
)
from state_machine.events import Duty, Settings, VerifiedIntent
from state_machine.lifecycle import opened
from state_machine.offers import NO_LONGER_OFFERED
from state_machine.state import HeldDispatch, HookRun, Known, Realising, SeenIntent, Session, State, Tracked
from state_machine.values import (
    Basis,
    Channel,
    Closure,
    HookMoment,
    HostName,
    OpId,
    Phase,
    RolloutId,
    Source,
    SteadyMs,
    WallMs,
)
from tests.cplab import closure

NOW = WallMs(1_780_000_000_000)
UNTIL = WallMs(NOW + 60_000)
NEW = closure("new")
R1 = RolloutId("gradient@00000001")

ASKED = {
    Source.FLEET: {Duty.DISPATCH, Duty.HEARTBEAT},
    Source.LEGACY: {Duty.INTENT, Duty.HEARTBEAT},
    Source.GRADIENT: {Duty.INTENT},
}
UNSIGNED = (Source.LEGACY, Source.GRADIENT)


def offer(*, withdrawn: bool = False, basis: Basis = Basis.CACHE_KEY) -> SeenIntent:
    intent = VerifiedIntent(
        rollout_id=R1, channel=Channel("gradient"), signed_at=NOW, manifest_digest="", manifest_key_id="",
        fleet_digest="", fleet_signed_at=NOW, fleet_key_id="", freshness_window_s=60, target=NEW, basis=basis,
    )  # fmt: skip
    return SeenIntent(intent=intent, seen_wall=NOW, seen_steady=SteadyMs(0), withdrawn=withdrawn)


def state(source: Source, phase: Phase | None = None, *, offered: bool | None = None, **known: Any) -> State:
    """A host that has asked everything. `offered`: its target stands, was taken back, or (None) never was."""
    intents = {} if offered is None else {R1: offer(withdrawn=not offered)}
    record = attrs.evolve(opened(R1, HostName("web1"), NEW), phase=phase or Phase.PENDING)
    tracked = Tracked(number=1, record=record, intent=offer().intent)
    rollouts = {} if phase is None else {R1: tracked}
    settings = Settings(machine_id=HostName("web1"), source=source)
    active = None if phase is None else R1
    values = {"settings": settings, "intents": intents, "rollouts": rollouts, "active": active, **known}
    return State(known=Known(**values), session=Session(last_success=dict.fromkeys(ASKED[source], NOW)))


def realising(**changes: Any) -> Realising:
    return Realising(op=OpId(1), rollout_id=R1, closure=NEW, due=SteadyMs(10**9), **changes)


@pytest.mark.parametrize("source", Source)
def test_nothing_is_said_before_the_source_has_been_asked_everything(source: Source) -> None:
    settled = state(source, Phase.CONVERGED, offered=True)
    assert exit_status(settled, UNTIL) == CONVERGED
    for duty in ASKED[source]:
        asked = {each: NOW for each in ASKED[source] if each is not duty}
        early = attrs.evolve(settled, session=Session(last_success=asked))
        assert exit_status(early, UNTIL) is None


@pytest.mark.parametrize("source", Source)
@pytest.mark.parametrize(
    ("phase", "status"),
    [
        (Phase.CONVERGED, CONVERGED),
        (Phase.REVERTED, ROLLED_BACK),
        (Phase.FAILED, FAILED),
        (Phase.DEFERRED, NEEDS_REBOOT),
        (Phase.SOAKING, None),
        (Phase.ACTIVATING, None),
    ],
)
def test_a_target_that_stands_is_what_it_came_to(source: Source, phase: Phase, status: int | None) -> None:
    assert exit_status(state(source, phase, offered=True), UNTIL) == status


@pytest.mark.parametrize(
    ("source", "status"), [(Source.FLEET, CONVERGED), (Source.LEGACY, CONVERGED), (Source.GRADIENT, NOTHING_OFFERED)]
)
@pytest.mark.parametrize("phase", [None, Phase.CONVERGED])
def test_no_target_is_an_outcome_where_a_build_is_looked_for_and_ordinary_elsewhere(
    source: Source, status: int, phase: Phase | None
) -> None:
    assert exit_status(state(source, phase), UNTIL) == status


@pytest.mark.parametrize("source", UNSIGNED)
@pytest.mark.parametrize("phase", [Phase.REVERTED, Phase.DEFERRED])
def test_how_a_host_was_left_is_said_even_when_nothing_more_is_wanted(source: Source, phase: Phase) -> None:
    expected = {Phase.REVERTED: ROLLED_BACK, Phase.DEFERRED: NEEDS_REBOOT}[phase]
    assert exit_status(state(source, phase, offered=False), UNTIL) == expected


@pytest.mark.parametrize("source", UNSIGNED)
def test_a_target_that_was_called_off_is_no_failure(source: Source) -> None:
    left = state(source, Phase.FAILED, offered=False)
    record = attrs.evolve(left.known.rollouts[R1].record, failure=NO_LONGER_OFFERED)
    tracked = attrs.evolve(left.known.rollouts[R1], record=record)
    called_off = attrs.evolve(left, known=attrs.evolve(left.known, rollouts={R1: tracked}))
    assert exit_status(called_off, UNTIL) == NOTHING_OFFERED
    assert exit_status(left, UNTIL) == FAILED


@pytest.mark.parametrize("source", UNSIGNED)
def test_what_an_earlier_run_prepared_and_nobody_offers_now_is_not_waited_for(source: Source) -> None:
    left = state(source, Phase.ACTIVATING, offered=False, operation=realising(retry_at=SteadyMs(5)))
    assert exit_status(left, UNTIL) == NOTHING_OFFERED
    held = state(source, offered=False, waiting=HeldDispatch(rollout_id=R1, target=NEW))
    assert exit_status(held, UNTIL) == (NOTHING_OFFERED if source is Source.GRADIENT else CONVERGED)


@pytest.mark.parametrize("source", Source)
def test_what_is_under_way_is_waited_for(source: Source) -> None:
    assert exit_status(state(source, Phase.ACTIVATING, offered=True, operation=realising()), UNTIL) is None
    held = HeldDispatch(rollout_id=RolloutId("stable@1"), target=NEW)
    assert exit_status(state(source, Phase.CONVERGED, offered=True, waiting=held), UNTIL) is None


def test_a_signed_manifest_in_doubt_is_waited_for() -> None:
    doubted = {R1: offer(withdrawn=True, basis=Basis.SIGNED_MANIFEST)}
    fleet = state(Source.FLEET, Phase.ACTIVATING, operation=realising())
    assert exit_status(attrs.evolve(fleet, known=attrs.evolve(fleet.known, intents=doubted)), UNTIL) is None


@pytest.mark.parametrize(("opens_at", "status"), [(UNTIL + 1, WAITS_FOR_WINDOW), (UNTIL, None), (NOW, None)])
def test_a_window_within_the_time_given_is_waited_for_and_a_later_one_is_not(opens_at: int, status: int | None) -> None:
    waits = state(Source.GRADIENT, Phase.ACTIVATING, offered=True, operation=realising(opens_at=WallMs(opens_at)))
    assert exit_status(waits, UNTIL) == status


def test_hooks_that_are_still_to_be_told_are_waited_for() -> None:
    told = HookRun(
        op=OpId(1),
        moment=HookMoment.AFTER_SUCCESS,
        rollout_id=R1,
        closure=NEW,
        before=Closure(""),
        basis=Basis.CACHE_KEY,
    )
    assert exit_status(state(Source.GRADIENT, Phase.CONVERGED, offered=True, hook_runs=(told,)), UNTIL) is None


def test_facts_the_server_does_not_have_are_waited_for() -> None:
    legacy = state(Source.LEGACY, Phase.CONVERGED, offered=True)
    tracked = legacy.known.rollouts[R1]
    intent = attrs.evolve(offer().intent, channel=Channel("legacy"))
    behind = attrs.evolve(tracked, record=attrs.evolve(tracked.record, last_seq=7), intent=intent)
    waits = attrs.evolve(legacy, known=attrs.evolve(legacy.known, rollouts={R1: behind}))
    assert exit_status(waits, UNTIL) is None
    delivered = attrs.evolve(behind, delivered_seq=7)
    done = attrs.evolve(legacy, known=attrs.evolve(legacy.known, rollouts={R1: delivered}))
    assert exit_status(done, UNTIL) == CONVERGED


@pytest.mark.parametrize("source", Source)
def test_a_host_that_may_begin_nothing_says_so_at_once(source: Source) -> None:
    held = attrs.evolve(state(source).known, settings=Settings(machine_id=HostName("web1"), source=source, holds="no"))
    assert exit_status(State(known=held), UNTIL) == CANNOT
