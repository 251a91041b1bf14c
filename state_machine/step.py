"""Decide what follows an event. The only place where anything is decided.

`step` is pure, total and deterministic: whatever is journaled must replay, so an event that makes no sense yields the
same state and an `Unexpected` or `Refuse`, never an exception. Read `LIFECYCLE` and this module first; each handler
is in the module of its topic.
"""

from typing import assert_never

import attrs

from state_machine import activation, delivery, health, intake, offers, reboots, recovery, schedule, windows
from state_machine.events import (
    Booted,
    CalendarRead,
    CertificateLoaded,
    DispatchReceived,
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
    SnapshotsReceived,
    SwitchFinished,
    SystemObserved,
    TargetOffered,
    Tick,
)
from state_machine.state import Session, State
from state_machine.turn import Step, Turn, without
from state_machine.values import Moment


def step(state: State, event: Event) -> Step:
    """The state after `event`, the facts it gave birth to, and the orders to carry out once it is in the journal."""
    if isinstance(event, Booted):
        return _boot(state, event)
    turn = Turn(state, event, state.known)
    _handle(turn, event)
    return _close(turn)


def exchange(state: State, at: Moment) -> Step:
    """The exchanges that are due at `at`, and nothing else: for a host that can write nothing down. Never durable."""
    turn = Turn(state, Tick(at=at), state.known)
    schedule.order_due(turn)
    return turn.finish()


def _boot(state: State, event: Booted) -> Step:
    rebooted = event.system.boot_id != state.known.clock.boot_id
    fresh = State(known=state.known, session=Session())
    turn = Turn(fresh, event, recovery.known_after_boot(state.known, event))
    recovery.on_booted(turn, event, rebooted=rebooted)
    return _close(turn)


def _close(turn: Turn) -> Step:
    """What may be due whatever the event was."""
    reboots.consider(turn)
    windows.order_calendar(turn)
    schedule.order_due(turn)
    return turn.finish()


def _handle(turn: Turn, event: Event) -> None:
    match event:  # what comes most often comes first: each case is tried in turn
        case Tick():
            intake.mark_all_stale(turn)
            activation.on_time(turn)
            health.judge(turn)
            schedule.mark_seen(turn)
        case DutyFinished():
            schedule.on_duty_finished(turn, event)
        case ProbeObserved():
            health.on_probe_observed(turn, event)
        case SystemObserved():
            health.on_system_observed(turn, event)
        case FactsDelivered():
            delivery.on_facts_delivered(turn, event)
        case IntentVerified():
            intake.on_intent_verified(turn, event)
        case IntentRefused():
            intake.on_intent_refused(turn, event)
        case DispatchReceived():
            intake.on_dispatch_received(turn, event)
        case SnapshotsReceived():
            intake.on_snapshots_received(turn, event)
        case TargetOffered():
            offers.on_target_offered(turn, event)
        case CalendarRead():
            windows.on_calendar_read(turn, event)
            activation.on_calendar(turn)
        case HooksFinished():
            activation.on_hooks_finished(turn, event)
        case RebootDelayed():
            reboots.on_reboot_delayed(turn, event)
        case RealiseFinished():
            activation.on_realise_finished(turn, event)
        case SwitchFinished():
            activation.on_switch_finished(turn, event)
        case ProbesDeclared():
            health.on_probes_declared(turn, event)
        case FactRefused():
            delivery.on_fact_refused(turn, event)
        case ReplayRequested():
            delivery.on_replay_requested(turn, event)
        case CertificateLoaded():
            schedule.on_certificate_loaded(turn, event)
        case QuarantineCleared():
            _on_quarantine_cleared(turn, event)
        case Poked():
            schedule.poke(turn)
        case Booted():
            raise AssertionError("a boot begins a run; step handles it before anything else")
        case _:
            assert_never(event)


def _on_quarantine_cleared(turn: Turn, event: QuarantineCleared) -> None:
    quarantine = turn.known.quarantine
    lifted = [closure for closure in quarantine if event.closure in (None, closure)]
    if not lifted:
        return turn.unexpected(f"{event.closure or 'nothing'} is not quarantined")
    turn.set(quarantine=without(quarantine, *lifted))
    current = turn.known.current
    if current is not None and current.record.target_closure in lifted:
        turn.put(attrs.evolve(current, cleared=True))
