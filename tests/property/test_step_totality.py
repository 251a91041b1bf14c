"""Every event has an answer in every state: `step` never raises, and leaves a state that hangs together.

Three ways to look: the product of sample states and sample events, states and events drawn apart, and events told to
an agent in the middle of a run.
"""

from collections.abc import Iterator
from typing import get_args

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_machine.actions import Action, ObserveSystem
from state_machine.events import (
    EVENT_KINDS,
    Booted,
    CalendarRead,
    CertificateLoaded,
    DispatchKind,
    DispatchReceived,
    Duty,
    DutyFinished,
    Event,
    FactRefused,
    FactsDelivered,
    HooksFinished,
    IntentRefused,
    IntentVerified,
    Poked,
    ProbeObserved,
    ProbesDeclared,
    QuarantineCleared,
    RealiseFinished,
    RebootDelayed,
    ReplayRequested,
    Snapshot,
    SnapshotsReceived,
    SwitchFinished,
    SystemObserved,
    TargetOffered,
    Tick,
)
from state_machine.invariants import check_step
from state_machine.schedule import next_wakeup
from state_machine.state import HeldDispatch, HookRun, SeenIntent, Session, State, Tracked
from state_machine.step import step
from state_machine.step_promises import contradictions
from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import Basis, HookMoment, Moment, OpId, Phase, ProbeStatus, Reason, SteadyMs, WallMs
from tests.property.agent_world import (
    ADMIN,
    DISK,
    HOST,
    HOUR,
    MINUTE,
    NEW,
    NEWER,
    OLD,
    R1,
    R2,
    SSH,
    T0,
    World,
    make_intent,
    make_offer,
)
from tests.property.strategies import (
    CALENDARS,
    EVENTS,
    FOLLOWERS,
    MACHINE,
    PHASES_OF_THE_ACTIVE,
    SETTINGS,
    any_event,
    constructed,
    known_with,
    operations_in,
    record_in,
    worlds_of_any_source,
)

NOW = Moment(wall_ms=WallMs(T0 + 10 * MINUTE), mono_ms=3 * HOUR)
"""Later than every deadline of the sample states, and within every freshness window."""

HELD = HeldDispatch(rollout_id=R2, target=NEW)
SEEN = SeenIntent(
    intent=make_intent(R1, NEW, signed_at=T0), seen_wall=WallMs(T0), seen_steady=SteadyMs(2 * HOUR + 50 * MINUTE)
)
OFFERED = SeenIntent(intent=make_offer(R1, NEW), seen_wall=WallMs(T0), seen_steady=SteadyMs(2 * HOUR + 50 * MINUTE))
OWED = HookRun(
    op=OpId(7), moment=HookMoment.AFTER_SUCCESS, rollout_id=R2, closure=OLD, before=None, basis=Basis.CACHE_KEY
)


def sample_states() -> Iterator[State]:
    """Every phase of the active rollout with every operation it may have, each with and without company."""
    for waiting in (None, HELD):
        yield State(known=known_with(None, None, waiting=waiting))
    yield from states_of_a_fleets_host()
    yield from states_of_a_host_that_follows_offers()


def states_of_a_host_that_follows_offers() -> Iterator[State]:
    """The same where nobody signs, and with what an operator may have configured."""
    for settings in (FOLLOWERS[1], FOLLOWERS[3]):
        yield State(known=known_with(None, None, settings=settings))
        for phase in PHASES_OF_THE_ACTIVE:
            tracked = Tracked(
                number=1, record=record_in(phase), prior=OLD, soak_from=SteadyMs(0), intent=OFFERED.intent
            )
            for operation in operations_in(phase, OLD):
                for calendar, seen in zip(CALENDARS, (OFFERED, OFFERED, OFFERED, OFFERED, WITHDRAWN), strict=True):
                    yield State(
                        known=known_with(
                            tracked,
                            operation,
                            settings=settings,
                            intents={R1: seen},
                            calendar=calendar,
                            hook_runs=(OWED,),
                            system=SystemView(boot_id="boot-1", running=OLD, profile=NEW),
                        )
                    )


WITHDRAWN = attrs.evolve(OFFERED, withdrawn=True)


def states_of_a_fleets_host() -> Iterator[State]:
    for phase in PHASES_OF_THE_ACTIVE:
        for prior in (OLD, NEW, None):
            tracked = Tracked(
                number=1,
                record=record_in(phase),
                prior=prior,
                soak_from=SteadyMs(0),
                intent=SEEN.intent,
                delivered_seq=1,
            )
            for operation in operations_in(phase, prior):
                for waiting in (None, HELD):
                    for settings in (MACHINE, SETTINGS[1], SETTINGS[2], SETTINGS[5]):
                        profile = NEW if phase is Phase.DEFERRED else OLD
                        known = known_with(
                            tracked,
                            operation,
                            waiting=waiting,
                            settings=settings,
                            intents={R1: SEEN},
                            system=SystemView(boot_id="boot-1", running=OLD, booted=OLD, profile=profile),
                        )
                        yield State(known=known, session=Session(started={Duty.DISPATCH: SteadyMs(0)}))


def sample_events() -> Iterator[Event]:
    """Every kind; answers with the number of the order under way, of an older one and of one never given."""
    same, gone = SystemView(boot_id="boot-1", running=NEW, profile=NEW), SystemView(boot_id="boot-1")
    after_reboot = attrs.evolve(same, boot_id="boot-2")
    for system in (same, gone, after_reboot, attrs.evolve(after_reboot, running=OLD)):
        yield Booted(at=NOW, settings=MACHINE, system=system, probes=(SSH, DISK))
        yield SystemObserved(at=NOW, system=attrs.evolve(system, boot_id="boot-1"))
    for settings, calendar in zip((FOLLOWERS[1], FOLLOWERS[3]), CALENDARS[2:4], strict=True):
        yield Booted(at=NOW, settings=settings, system=same, probes=(SSH, DISK), calendar=calendar)
        yield Booted(at=NOW, settings=settings, system=after_reboot, probes=(SSH, DISK), calendar=calendar)
    yield from (CalendarRead(at=NOW, calendar=calendar) for calendar in CALENDARS if calendar is not None)
    for closure in (NEW, OLD, NEWER, None, "", "../../etc"):
        yield from (TargetOffered(at=NOW, basis=basis, closure=closure) for basis in Basis)
    yield Tick(at=NOW)
    for op in (OpId(1), OpId(0), OpId(7), OpId(99)):
        yield from (HooksFinished(at=NOW, op=op, veto=veto) for veto in ("", "a backup runs"))
        yield from (RebootDelayed(at=NOW, op=op, locked=locked) for locked in (True, False))
        for ok, untrusted in ((True, False), (False, False), (False, True)):
            yield RealiseFinished(at=NOW, op=op, ok=ok, untrusted=untrusted)
        for outcome in SwitchOutcome:
            for runs in (NEW, OLD, ADMIN):
                view = SystemView(boot_id="boot-1", running=runs, profile=NEW)
                yield SwitchFinished(at=NOW, op=op, outcome=outcome, system=view)
    for rollout_id in (R1, R2):
        for target in (NEW, OLD, None):
            for age in (0, 2 * HOUR, -HOUR):
                intent = make_intent(rollout_id, target, signed_at=NOW.wall_ms - age)
                yield IntentVerified(at=NOW, intent=intent)
        for final in (True, False):
            yield IntentRefused(at=NOW, rollout_id=rollout_id, reason=Reason.MISSING, detail="", final=final)
        for kind in DispatchKind:
            yield DispatchReceived(
                at=NOW, hostname=HOST, rollout_id=rollout_id, target_closure=NEW, running=OLD, kind=kind
            )
        for seq in (0, 2, 3, 99):
            yield FactsDelivered(at=NOW, rollout_id=rollout_id, through_seq=seq)
            yield FactRefused(at=NOW, rollout_id=rollout_id, seq=seq, status=409, reason="")
            yield ReplayRequested(at=NOW, rollout_id=rollout_id, from_seq=seq)
            for phase in Phase:
                snapshot = Snapshot(rollout_id=rollout_id, phase=phase, target_closure=NEW, last_seq=seq)
                yield SnapshotsReceived(at=NOW, snapshots=(snapshot,))
    yield from (ProbesDeclared(at=NOW, probes=probes) for probes in ((), (SSH,), (SSH, DISK)))
    for status in ProbeStatus:
        yield ProbeObserved(at=NOW, name="ssh", status=status, began_mono_ms=NOW.mono_ms)
        yield ProbeObserved(at=NOW, name="nobody", status=status, began_mono_ms=0)
    for duty in Duty:
        yield from (DutyFinished(at=NOW, duty=duty, ok=ok) for ok in (True, False))
    yield CertificateLoaded(at=NOW, validity=None)
    yield CertificateLoaded(at=NOW, validity=(WallMs(T0), WallMs(T0 - HOUR)))
    yield from (QuarantineCleared(at=NOW, closure=closure, by="root") for closure in (None, NEW, OLD))
    yield Poked(at=NOW)


EVERY_STATE = list(sample_states())
EVERY_EVENT = list(sample_events())
TELLING_EVENTS = [event for event in EVERY_EVENT if getattr(event, "op", OpId(1)) == OpId(1)][::2]
"""Enough of them to bring every order about."""


def test_the_samples_cover_every_kind_of_event_and_every_phase_and_operation() -> None:
    assert {type(event) for event in EVERY_EVENT} == set(EVENT_KINDS) == set(EVENTS)
    assert {s.known.current.record.phase for s in EVERY_STATE if s.known.current} == set(PHASES_OF_THE_ACTIVE)
    kinds = {type(s.known.operation).__name__ for s in EVERY_STATE}
    assert kinds == {"NoneType", "Realising", "Consulting", "Switching", "RollingBack", "Rebooting"}
    assert not [problem for state in EVERY_STATE for problem in contradictions(state.known)]


@pytest.mark.parametrize("kind", EVENT_KINDS, ids=lambda kind: kind.__name__)
def test_every_sample_state_answers_every_sample_event(kind: type[Event]) -> None:
    for event in (event for event in EVERY_EVENT if type(event) is kind):
        for state in EVERY_STATE:
            taken = step(state, event)
            assert not check_step(state, event, taken), (state, event)


def test_every_kind_of_order_is_given_in_some_sample_state() -> None:
    given = {type(order) for event in TELLING_EVENTS for state in EVERY_STATE for order in step(state, event).actions}
    assert given == set(get_args(Action)) - {ObserveSystem}  # which takes probes that have passed


def test_a_stale_answer_changes_nothing_in_any_sample_state() -> None:
    for op in (OpId(0), OpId(7), OpId(99)):
        view = SystemView(boot_id="boot-1", running=NEW, profile=NEW)
        for event in (
            RealiseFinished(at=NOW, op=op, ok=True),
            SwitchFinished(at=NOW, op=op, outcome=SwitchOutcome.SWITCHED, system=view),
            HooksFinished(at=NOW, op=op, veto="no"),
            RebootDelayed(at=NOW, op=op, locked=True),
        ):
            for state in map(settled, EVERY_STATE):
                assert not step(state, event).durable, (state, event)


def settled(state: State) -> State:
    """The state once everything that is due by `NOW` has been seen to, with nobody else's order in it."""
    known = attrs.evolve(state.known, waiting=None, hook_runs=())
    return step(step(State(known=known, session=state.session), Tick(at=NOW)).state, Tick(at=NOW)).state


def test_no_sample_state_keeps_an_agent_awake() -> None:
    """Once a `Tick` has been told at the instant that was named, the next one lies ahead: nothing spins."""
    for state in EVERY_STATE:
        at = NOW
        for _ in range(40):
            state = step(state, Tick(at=at)).state
            delay = next_wakeup(state, at)
            if delay is None:
                break
            assert delay > 0, state
            at = Moment(wall_ms=WallMs(at.wall_ms + delay), mono_ms=at.mono_ms + delay)


def test_what_just_happened_wakes_nobody_over_and_over() -> None:
    for event in TELLING_EVENTS:
        for state in EVERY_STATE[:: len(EVERY_STATE) // 150]:
            later = step(state, event).state
            if next_wakeup(later, NOW) == 0:
                later = step(later, Tick(at=NOW)).state
                assert next_wakeup(later, NOW) != 0, (state, event)


@given(state=constructed(), event=any_event)
def test_any_state_that_hangs_together_answers_any_event_and_still_does(state: State, event: Event) -> None:
    assert not list(contradictions(state.known))
    taken = step(state, event)
    assert not check_step(state, event, taken)
    wait = next_wakeup(taken.state, event.at)
    assert wait is None or wait >= 0


@given(state=constructed(), events=st.lists(any_event, min_size=2, max_size=8))
def test_any_state_answers_any_events_one_after_the_other(state: State, events: list[Event]) -> None:
    for event in events:
        taken = step(state, event)
        assert not check_step(state, event, taken)
        state = taken.state


@given(world=worlds_of_any_source, events=st.lists(any_event, min_size=1, max_size=3))
def test_an_agent_in_the_middle_of_a_run_answers_any_event(world: World, events: list[Event]) -> None:
    for event in events:
        world.tell(event)
    assert not world.problems


@given(state=constructed(), event=any_event)
def test_the_same_event_in_the_same_state_gives_the_same_step(state: State, event: Event) -> None:
    assert step(state, event) == step(state, event)
