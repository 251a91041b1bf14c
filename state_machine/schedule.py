"""When to talk to the control plane, and when to wake up. Deadlines, not tickers.

Every exchange is a `Duty` with one due time in the session. `next_wakeup` is a pure function of the state; one task
sleeps until then and sends `Tick`. An idle agent wakes for its polls and nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from state_machine import windows
from state_machine.actions import DeliverFacts, FetchIntent, Perform
from state_machine.events import CertificateLoaded, Duty, DutyFinished, Settings
from state_machine.freshness import is_marked_stale, is_signed, window_left_ms
from state_machine.state import (
    Consulting,
    Known,
    Operation,
    Realising,
    Rebooting,
    RollingBack,
    State,
    Switching,
    Tracked,
    fact_backlog,
)
from state_machine.turn import Turn, without
from state_machine.values import Moment, Phase, ProbeMode, ProbeStatus, RolloutId, Source, SteadyMs, WallMs

BACKOFF_BASE_MS: Final[Mapping[Duty, int]] = {
    Duty.INTENT: 2_000,
    Duty.DISPATCH: 1_000,
    Duty.HEARTBEAT: 2_000,
    Duty.DELIVERY: 1_000,
    Duty.RENEWAL: 30_000,
}
BACKOFF_CAP_MS: Final[Mapping[Duty, int]] = {
    Duty.INTENT: 60_000,
    Duty.DISPATCH: 60_000,
    Duty.HEARTBEAT: 60_000,
    Duty.DELIVERY: 60_000,
    Duty.RENEWAL: 3_600_000,
}
DUTIES: Final[Mapping[Source, tuple[Duty, ...]]] = {
    Source.FLEET: (Duty.HEARTBEAT, Duty.DISPATCH, Duty.INTENT),
    Source.LEGACY: (Duty.HEARTBEAT, Duty.INTENT),
    Source.GRADIENT: (Duty.INTENT,),
}
"""The exchanges that recur with each source. Facts are delivered when there are any, certificates renewed in time."""
RETRY_AFTER_CAP_MS: Final = 3_600_000
"""A hostile `Retry-After` may not silence a host for longer than this."""
POLL_GAP_MS: Final = 1_000
"""A long-poll is not begun sooner than this after the one before it: an answer at once must not become a busy loop."""
DELIVERY_BATCH: Final = 200
"""Facts handed to the outbound worker at a time, so that a long backlog never fills memory."""
LOST_MS: Final = 300_000
"""An exchange or a fetch that has not ended after this long was lost with its worker, and is ordered again."""
REFETCH_BASE_MS: Final = 2_000
REFETCH_CAP_MS: Final = 60_000


def backoff_ms(base_ms: int, cap_ms: int, failures: int, jitter: float) -> int:
    """Exponential from `base_ms`, capped, then spread over its upper half by `jitter` in [0, 1)."""
    whole = min(cap_ms, base_ms << min(failures, 20))
    return int(whole * (0.5 + 0.5 * jitter))


def start(turn: Turn) -> None:
    """Make every exchange due at the beginning of a run."""
    turn.set_session(due=dict.fromkeys(DUTIES[turn.known.settings.source], turn.now))


def poke(turn: Turn) -> None:
    """Make every exchange that is not under way due now. A certificate that is in use is renewed in its own time."""
    session = turn.session
    keeps = {Duty.RENEWAL} if session.certificate is not None else set()
    due = {duty: at if duty in keeps else turn.now for duty, at in session.due.items()}
    turn.set_session(due=due, refetch_at=None if session.refetch_at is None else turn.now)


def on_certificate_loaded(turn: Turn, event: CertificateLoaded) -> None:
    """Plan the renewal for when the configured part of the certificate's life is left."""
    not_before, not_after = event.validity or (turn.wall, turn.wall)
    life = not_after - not_before
    renew_at = WallMs(not_after - int(life * turn.known.settings.renewal_fraction))
    # A certificate that a renewal brought and that wants renewing at once must not make the two go round.
    pause = BACKOFF_BASE_MS[Duty.RENEWAL] if Duty.RENEWAL in turn.session.started else 0
    due = SteadyMs(turn.now + max(pause, renew_at - turn.wall))
    turn.set_session(certificate=event.validity, due={**turn.session.due, Duty.RENEWAL: due})


def on_duty_finished(turn: Turn, event: DutyFinished) -> None:
    """Plan the next exchange of this kind."""
    duty, session = event.duty, turn.session
    if duty not in session.started:
        return turn.unexpected(f"no {duty} exchange is under way")
    stuck = _stuck(turn) if duty is Duty.DELIVERY else 0
    useful = event.ok and not stuck
    failures = 0 if useful else session.failures.get(duty, 0) + 1
    pause = _pause_ms(turn, event) if useful else _retry_ms(turn.known.settings, event, failures)
    changes: dict[str, Any] = {
        "failures": {**session.failures, duty: failures},
        "started": without(session.started, duty),
        "due": {**session.due, duty: SteadyMs(turn.now + pause)},
    }
    if duty is Duty.DELIVERY:
        changes["stuck"] = stuck
    if event.ok:
        changes |= {"last_contact": turn.wall, "last_success": {**session.last_success, duty: turn.wall}}
        if duty is Duty.RENEWAL and duty in session.due:
            del changes["due"]  # planned when the new certificate was loaded
    turn.set_session(**changes)


def _stuck(turn: Turn) -> int:
    """The number of the rollout of which facts were handed out and none is delivered, whatever the reason; else 0.

    To try that one again at once would be for ever.
    """
    if turn.session.delivering is None:
        return 0
    rollout_id, from_seq = turn.session.delivering
    tracked = turn.known.rollouts.get(rollout_id)
    return tracked.number if tracked is not None and tracked.delivered_seq < from_seq else 0


def _pause_ms(turn: Turn, event: DutyFinished) -> int:
    settings = turn.known.settings
    match event.duty:
        case Duty.INTENT if event.again_after_ms is not None:
            return min(max(event.again_after_ms, POLL_GAP_MS), settings.poll_interval_s * 1000)
        case Duty.INTENT:
            return _spread(settings.poll_interval_s * 1000, event.jitter)
        case Duty.HEARTBEAT:
            return _spread(settings.heartbeat_interval_s * 1000, event.jitter)
        case Duty.DISPATCH:
            return max(0, turn.session.started[event.duty] + POLL_GAP_MS - turn.now)
        case Duty.DELIVERY:
            return 0
        case Duty.RENEWAL:  # it brought no certificate that could be loaded
            return BACKOFF_CAP_MS[event.duty]


def _spread(period_ms: int, jitter: float) -> int:
    """`period_ms` give or take a twentieth, so that a fleet started together does not knock together for ever."""
    return int(period_ms * (0.95 + 0.1 * jitter))


def _retry_ms(settings: Settings, event: DutyFinished, failures: int) -> int:
    base, cap = BACKOFF_BASE_MS[event.duty], BACKOFF_CAP_MS[event.duty]
    if event.duty is Duty.INTENT and settings.source is not Source.FLEET:
        base = max(settings.retry_interval_s * 1000, POLL_GAP_MS)
        cap = max(base, settings.poll_interval_s * 1000)
    own = backoff_ms(base, cap, failures - 1, event.jitter)
    return max(own, min(event.retry_after_ms or 0, RETRY_AFTER_CAP_MS))


def order_due(turn: Turn) -> None:
    """Order every exchange whose time has come, as the last thing in every step."""
    now, started = turn.now, turn.session.started
    if started and now - min(started.values()) >= LOST_MS:
        _revive_lost(turn)
    if due := [duty for duty, at in turn.session.due.items() if at <= now and duty is not Duty.DELIVERY]:
        _begin(turn, due)
    if Duty.DELIVERY not in turn.session.started:
        _order_delivery(turn)
    if turn.session.refetch_at is not None:
        _order_refetch(turn)


def _revive_lost(turn: Turn) -> None:
    session, now = turn.session, turn.now
    lost = [duty for duty, since in session.started.items() if now - since >= LOST_MS]
    turn.set_session(started=without(session.started, *lost), due={**session.due, **dict.fromkeys(lost, now)})


def _begin(turn: Turn, due: Sequence[Duty]) -> None:
    session, now = turn.session, turn.now
    begun = [duty for duty in due if duty not in session.started]
    if begun:
        turn.set_session(due=without(session.due, *begun), started={**session.started, **dict.fromkeys(begun, now)})
    for duty in begun:
        turn.order(Perform(duty=duty))


def mark_seen(turn: Turn) -> None:
    """The levels of the soak have been considered up to this moment; they need wake nobody again."""
    turn.set_session(seen=turn.now, seen_wall=turn.wall)


def _order_delivery(turn: Turn) -> None:
    session = turn.session
    if turn.now < session.due.get(Duty.DELIVERY, turn.now):
        return
    if not (backlog := fact_backlog(turn.known)):
        return
    # One rollout whose facts will not go through must not stand in the way of the others. A server that is only told
    # what this host did last must be told in order, and knows no rollouts that could get stuck.
    passed_over = 0 if turn.known.settings.source is Source.LEGACY else session.stuck
    first = next((tracked for tracked in backlog if tracked.number > passed_over), backlog[0])
    from_seq = first.delivered_seq + 1
    turn.set_session(
        due=without(session.due, Duty.DELIVERY),
        started={**session.started, Duty.DELIVERY: turn.now},
        delivering=(first.record.rollout_id, from_seq),
    )
    turn.order(
        DeliverFacts(
            rollout_id=first.record.rollout_id,
            from_seq=from_seq,
            through_seq=min(first.record.last_seq, from_seq + DELIVERY_BATCH - 1),
        )
    )


def _order_refetch(turn: Turn) -> None:
    held, at = turn.known.waiting, turn.session.refetch_at
    if held is not None and at is not None and at <= turn.now:
        fetch(turn, held.rollout_id)


def fetch(turn: Turn, rollout_id: RolloutId) -> None:
    """Order the held dispatch's manifest, and again should no answer come."""
    turn.set_session(refetch_at=SteadyMs(turn.now + LOST_MS))
    turn.order(FetchIntent(rollout_id=rollout_id))


def plan_refetch(turn: Turn, jitter: float, retry_after_ms: int | None) -> None:
    """Try to fetch the held dispatch's manifest again after a growing pause, or after the one that was asked for."""
    failures = turn.session.refetch_failures
    own = backoff_ms(REFETCH_BASE_MS, REFETCH_CAP_MS, failures, jitter)
    at = SteadyMs(turn.now + max(own, min(retry_after_ms or 0, RETRY_AFTER_CAP_MS)))
    turn.set_session(refetch_at=at, refetch_failures=failures + 1)


def next_wakeup(state: State, at: Moment) -> int | None:
    """Milliseconds from `at` until a `Tick` is wanted; None when only an event can change anything."""
    known = state.known
    now = known.clock.read(at)
    waits = _wall_waits(state, at.wall_ms, now)
    instants = _exchange_instants(state)
    if known.operation is not None and (due := _operation_due(known.operation)) is not None:
        instants.append(due)
    if known.current is not None and known.current.record.phase is Phase.SOAKING:
        # A level that was already considered at its instant must not wake anybody again.
        instants += [instant for instant in _soak_instants(known, known.current) if instant > state.session.seen]
    if instants:
        waits.append(min(instants) - now)
    return max(0, min(waits)) if waits else None


def _exchange_instants(state: State) -> list[int]:
    known, session = state.known, state.session
    started = session.started
    instants: list[int] = []
    for duty, due in session.due.items():
        if duty not in started and (duty is not Duty.DELIVERY or fact_backlog(known)):
            instants.append(due)
    if started:
        instants.append(min(started.values()) + LOST_MS)
    if known.waiting is not None and session.refetch_at is not None:
        instants.append(session.refetch_at)
    return instants


def _operation_due(operation: Operation) -> SteadyMs | None:
    """When to try again, or when the order counts as lost; None: that is a matter of the wall clock."""
    match operation:
        case Realising(retry_at=int(at)) | RollingBack(retry_at=int(at)) | Rebooting(retry_at=int(at)):
            return SteadyMs(at)
        case Realising(opens_at=int()):
            return None
        case Realising(due=due) | Consulting(due=due) | Switching(due=due) | RollingBack(due=due) | Rebooting(due=due):
            return due


def _soak_instants(known: Known, current: Tracked) -> list[int]:
    if current.soak_from is None:
        return []
    ends = [current.soak_from + current.soak_ms]
    for spec in known.judges:
        health = known.probes.get(spec.name)
        if spec.mode is ProbeMode.ENFORCE and health is not None and health.status is ProbeStatus.FAIL:
            ends.append(health.since + sustained_ms(known))
    return ends


def sustained_ms(known: Known) -> int:
    """How long an enforce probe must fail without a break before the rollout fails."""
    current = known.current
    named = None if current is None else current.policy.sustained_failure_ms
    return known.settings.sustained_failure_s * 1000 if named is None else named


def _wall_waits(state: State, wall: WallMs, now: SteadyMs) -> list[int]:
    known, waits = state.known, []
    current = known.current
    if current is not None and current.record.phase is Phase.SOAKING:
        due = current.record.soak_due_at
        if due is not None and due > state.session.seen_wall:
            waits.append(due - wall)
    waits += _window_waits(state, wall, now)
    for seen in known.intents.values():
        # That an offer is no longer said again matters only when something is begun on its account.
        if is_signed(seen.intent) and not is_marked_stale(known, seen):
            waits.append(window_left_ms(known, seen, wall, now) + 1)
    return waits


def _window_waits(state: State, wall: WallMs, now: SteadyMs) -> list[int]:
    known, waits = state.known, []
    if isinstance(known.operation, Realising) and known.operation.opens_at is not None:
        opens_at = windows.opens_at(known.calendar, windows.activation, wall)  # the clock may have been set since
        waits.append(min(known.operation.opens_at, known.operation.opens_at if opens_at is None else opens_at) - wall)
    if known.operation is None and known.waiting is None and windows.waits_for_reboot(known) is not None:
        opens = windows.reboot_opens_at(known, wall)
        waits += [] if opens is None else [opens - wall]
    calendar = windows.next_calendar_ms(known, wall, now, state.session.calendar_asked)
    return waits if calendar is None else [*waits, calendar]
